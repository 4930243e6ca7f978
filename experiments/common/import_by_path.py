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
    module, name = path.split(":")
    value = _import_module(module, flag)
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


def _import_module(name: str, flag: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            reason = f"there is no module `{error.name}` from {os.getcwd()}."
        else:
            reason = f"it needs the module `{error.name}`, which is not installed."
        raise ValueError(f"--{flag}={name}: {reason}") from error
    except Exception as error:  # a module is a program and may raise anything
        reason = f"it can't be imported: {type(error).__name__}: {error}"
        raise ValueError(f"--{flag}={name}: {reason}") from error
