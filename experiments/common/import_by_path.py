"""What of the user's own code a flag names, as module:name."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def find(text: str | None, *, flag: str, kind: str) -> Callable[..., Any]:
    """The function or class that `module:name` names; name may be `Class.method`. Modules are found
    from here, too.

    Args:
      text: what the flag was given.
      flag: its name.
      kind: what it names, function or class.

    Raises:
      ValueError: if the text has no such form, there is no such module or name, or it can't be
        called.
    """
    if not text or text.count(":") != 1 or not all(text.split(":")):
        raise ValueError(
            f"`--{flag}` must be module:{kind}, such as my_project.{flag}:mine, got {text or 'nothing'}."
        )
    module_name, name = text.split(":")
    found = _module(module_name, flag)
    for part in name.split("."):
        if not hasattr(found, part):
            known = ", ".join(
                key for key, value in vars(found).items() if callable(value) and key[0] != "_"
            )
            raise ValueError(
                f"--{flag}={text}: there is no `{part}` in `{module_name}`; known: {known or f'no {kind}'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"--{flag}={text}: `{name}` must be a {kind}, got {type(found).__name__}.")
    return found


def _module(name, flag):
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ValueError(
                f"--{flag}={name}: there is no module `{error.name}` from {os.getcwd()}."
            ) from error
        raise ValueError(
            f"--{flag}={name}: it needs the module `{error.name}`, which is not installed."
        ) from error
    except Exception as error:  # a module is a program: whatever it raises is about that file
        raise ValueError(
            f"--{flag}={name}: it can't be imported: {type(error).__name__}: {error}"
        ) from error
