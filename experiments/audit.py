"""Names the divergence of a loss function, and its mistakes.

  python -m experiments.audit --loss=my_project.losses:distillation_loss --expected=kl

The function takes student and teacher logits, and labels and a mask if it has parameters of such
names. Modules are found from the current folder. The exit code is 1 if a mistake is found, 0 if
none, 2 if the command is wrong or the function fails on ordinary logits.
"""

from experiments.common import startup

startup.begin(__name__)

import importlib.util

from absl import flags

from experiments.common import cli, import_by_path
from jaxdiv.audit import audit, numpy_loss, torch_loss

LOSS = flags.DEFINE_string("loss", None, "The function, as module:function.")
EXPECTED = flags.DEFINE_string("expected", None, "The intended loss, such as kl or 0.7*kl+0.3*tv.")
AXES = flags.DEFINE_enum(
    "axes", None, ["BLV", "NV", "V"], "The only shape of logits it is called with, if it is one."
)
FRAMEWORK = flags.DEFINE_enum(
    "framework", "jax", ["jax", "numpy", "torch"], "The arrays that it takes."
)
MISTAKE_FOUND = 1
_ADAPTERS = {"jax": lambda function: function, "numpy": numpy_loss, "torch": torch_loss}


def main(argv) -> int:
    del argv
    if FRAMEWORK.value == "torch" and importlib.util.find_spec("torch") is None:
        raise ValueError("`--framework=torch` needs PyTorch, which is not installed.")
    loss = _ADAPTERS[FRAMEWORK.value](import_by_path.find(LOSS.value, flag="loss", kind="function"))
    result = audit(loss, expected=EXPECTED.value, axes=AXES.value)
    if {finding.code for finding in result.findings} == {"does_not_run"}:
        got = result.findings[0].evidence.got
        raise ValueError(f"--loss={LOSS.value}: it can't be called with logits: {got}")
    print(result)
    return MISTAKE_FOUND if result.mistakes else 0


if __name__ == "__main__":
    cli.run(main)
