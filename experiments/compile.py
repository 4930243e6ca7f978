"""Whether a config's training fits a TPU that is not there: its steps compiled ahead of time, nothing run.

  pip install -e '.[train,tpu]'
  python -m experiments.compile --config=configs/large_vocab.py --topology=v5e:1x1

Memory of one chip, on which all of a step runs, as XLA plans it, and whether the compiled steps hold an array with a
number for each of the batch's N tokens and each of the V classes, padded or not. The tokenizer is taken to have
`config.data.vocabulary` tokens; a teacher of another run or folder brings its sizes. The exit code is 1 if a step does
not fit.
"""

import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import ahead, cli
from jaxdiv.training import donors, own_text, students, teacher
from jaxdiv.training.state import population_shapes
from jaxdiv.training.workdir import Workdir

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "Kind and shape of the TPU slice; its first chip is used.")
COLUMNS = (
    "step",
    "arguments",
    "outputs",
    "temporaries",
    "in all",
    "HBM",
    "fits",
    "has [N, V]",
    "largest, M numbers",
)
_EXHAUSTED = "RESOURCE_EXHAUSTED"


def steps(config) -> dict[str, tuple[Callable, tuple]]:
    """The jitted training step of each stage, and the shapes of its state, the teacher and a batch."""
    vocab_size = config["data"]["vocabulary"]
    guide = population_shapes(donors.build(config, vocab_size), 1)
    pupils = population_shapes(students.builder(config, vocab_size), config["seeds"])
    frozen = guide.with_params(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), guide.params))
    write = own_text.writer(config, frozen, pupils, end_of_text=0)
    learn = students.step(config, pupils, students.lesson(config, frozen), write, platform="tpu")
    made = {"student": (learn, (_begun(students, config, pupils), frozen.params, _batch(config, "student")))}
    if not config["teacher"]["checkpoint"]:
        train = teacher.step(config, guide, platform="tpu")
        made["teacher"] = train, (_begun(teacher, config, guide), None, _batch(config, "teacher"))
    return made


def _begun(stage, config, model):
    return jax.eval_shape(lambda params: stage.beginning(config, model.with_params(params)), model.params)


def _batch(config, stage):
    shape = config[stage]["batch_size"], config["data"]["sequence_length"]
    types = {"inputs": jnp.int32, "labels": jnp.int32, "weights": jnp.float32}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in types.items()}


def compiled(step: Callable, shapes: tuple, chip: jax.Device) -> jax.stages.Compiled:
    """The step for this chip; raises JaxRuntimeError if it does not fit."""
    here = jax.sharding.SingleDeviceSharding(chip)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return step.lower(*placed).compile()


def of_all_logits(config, stage: str) -> set[int]:
    """How many elements an array of all tokens' logits has: of one student or of all seeds, padded or not."""
    tokens = config[stage]["batch_size"] * config["data"]["sequence_length"]
    classes = config["data"]["vocabulary"], config["teacher"]["padded_vocabulary"]
    return {k * tokens * count for k in (1, config["seeds"]) for count in classes if count}


def row(config, stage: str, step: Callable, shapes: tuple, chip: jax.Device) -> list[str]:
    """What the table says of a stage."""
    room = ahead.HBM.get(chip.device_kind)
    try:
        program = compiled(step, shapes, chip)
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        return [stage, *[""] * 4, f"{room or '?'}", "no", "", ""]
    memory, sizes = ahead.Memory.of(program), ahead.elements(program)
    parts = memory.arguments, memory.outputs, memory.temporaries, memory.total
    fits = "?" if room is None else "yes" if memory.total <= room * 1e9 else "no"
    whole = "yes" if any(sizes[size] for size in of_all_logits(config, stage)) else "no"
    told = [f"{part / 1e9:.2f}" for part in parts]
    return [stage, *told, f"{room or '?'}", fits, whole, f"{max(sizes) / 1e6:.4g}"]


def main(_):
    with tempfile.TemporaryDirectory() as nothing:
        config = teacher.settle(cli.loaded(CONFIG).to_dict(), Workdir(nothing), typed=cli.typed(CONFIG))
    chip = ahead.chips(TOPOLOGY.value)[0]
    table = Table(title=f"One chip, {chip.device_kind}: GB", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "step" else "right")
    rows = [row(config, stage, step, shapes, chip) for stage, (step, shapes) in steps(config).items()]
    for made in rows:
        table.add_row(*made)
    Console(width=120).print(table)
    return int(any(made[COLUMNS.index("fits")] == "no" for made in rows))


if __name__ == "__main__":
    cli.run(main)
