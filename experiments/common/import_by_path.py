"""Imports the user's own code that a flag names as module:name."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def find(path: str | None, *, flag: str, kind: str) -> Callable[..., Any]:
    """Returns the function or class at `module:name`, where name may be `Class.method`.

    Modules are also imported from the current folder.

    Args:
      path: the value of the flag.
      flag: the flag's name.
      kind: "function" or "class".

    Raises:
      ValueError: the path has another form, the module or name is missing, or can't be called.
    """
    if not path or path.count(":") != 1 or not all(path.split(":")):
        raise ValueError(
            f"`--{flag}` must be module:{kind}, such as my_project.{flag}:mine, "
            f"got {path or 'nothing'}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, name = path.split(":")
    try:
        value = importlib.import_module(module)
    except Exception as error:  # a module is a program and may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (module == missing or module.startswith(missing + ".")):
            reason = f"there is no module `{missing}` from {os.getcwd()}."
        elif isinstance(error, ModuleNotFoundError):
            reason = f"it needs the module `{missing}`, which is not installed."
        else:
            reason = f"it can't be imported: {type(error).__name__}: {error}"
        raise ValueError(f"--{flag}={module}: {reason}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            names = [key for key, x in vars(value).items() if callable(x) and key[0] != "_"]
            raise ValueError(
                f"--{flag}={path}: there is no `{part}` in `{module}`; "
                f"known: {', '.join(names) or f'no {kind}'}"
            )
        value = getattr(value, part)
    if not callable(value):
        raise ValueError(f"--{flag}={path}: `{name}` must be a {kind}, got {type(value).__name__}.")
    return value
