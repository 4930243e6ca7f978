"""Names a loss function and what is wrong with it.

  python -m experiments.audit --loss=my_project.losses:distillation_loss --expected=kl

The function takes student and teacher logits, and labels and a mask if it has parameters of such names. Modules are
found from the current folder. The exit code is 1 if a mistake is found, 0 if none, 2 if the command is wrong or the
function fails on ordinary logits.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable

from absl import flags

from experiments import cli
from jaxdiv.audit import Audit, numpy_loss, torch_loss
from jaxdiv.audit import audit as audit_loss

LOSS = flags.DEFINE_string("loss", None, "The function, as module:function.")
EXPECTED = flags.DEFINE_string("expected", None, "What it should be, such as kl or 0.7*kl+0.3*tv.")
AXES = flags.DEFINE_enum("axes", None, ["BLV", "NV", "V"], "The only shape of logits it is called with, if it is one.")
FRAMEWORK = flags.DEFINE_enum("framework", "jax", ["jax", "numpy", "torch"], "What arrays it takes.")
MISTAKE_FOUND = 1
_ADAPTERS = {"jax": lambda function: function, "numpy": numpy_loss, "torch": torch_loss}


def find(text: str | None) -> Callable:
    """The function that `module:function` names; function may be `Class.method`.

    Raises:
      ValueError: if the text has no such form, there is no such module or function, or it can't be called.
    """
    if not text or text.count(":") != 1 or not all(text.split(":")):
        raise ValueError(f"`--loss` must be module:function, such as losses:kl, got {text or 'nothing'}.")
    module_name, name = text.split(":")
    found = _module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            known = ", ".join(key for key, value in vars(found).items() if callable(value) and key[0] != "_")
            raise ValueError(f"--loss={text}: there is no `{part}` in `{module_name}`; known: {known or 'no function'}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"--loss={text}: `{name}` must be a function, got {type(found).__name__}.")
    return found


def _module(name):
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ValueError(f"--loss={name}: there is no module `{error.name}` from {os.getcwd()}.") from error
        raise ValueError(f"--loss={name}: it needs the module `{error.name}`, which is not installed.") from error
    except Exception as error:  # a module is a program: whatever it raises is about that file
        raise ValueError(f"--loss={name}: it can't be imported: {type(error).__name__}: {error}") from error


def examine() -> Audit:
    """Raises ValueError if there is no such function, or none that takes logits."""
    if FRAMEWORK.value == "torch" and importlib.util.find_spec("torch") is None:
        raise ValueError("`--framework=torch` needs PyTorch, which is not installed.")
    loss = _ADAPTERS[FRAMEWORK.value](find(LOSS.value))
    found = audit_loss(loss, expected=EXPECTED.value, axes=AXES.value)
    if {finding.code for finding in found.findings} == {"does_not_run"}:
        raise ValueError(f"--loss={LOSS.value}: it can't be called with logits: {found.findings[0].evidence.got}")
    return found


def main(argv) -> int:
    del argv
    found = examine()
    print(found)
    return MISTAKE_FOUND if found.mistakes else 0


if __name__ == "__main__":
    cli.run(main)
