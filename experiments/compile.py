"""Whether a config's training fits a TPU that is not there: its steps compiled ahead of time, nothing run.

  pip install -e '.[train,tpu]'
  python -m experiments.compile --config=configs/large_vocab.py --topology=v5e:1x1

Memory of one chip, on which all of a step runs, as XLA plans it, and whether the compiled steps hold an array with a
number for each of the batch's N tokens and each of the V classes, padded or not. The tokenizer is taken to have
`config.data.vocabulary` tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import ahead, cli
from jaxdiv.training import config as run_config
from jaxdiv.training import donors, own_text, students, teacher
from jaxdiv.training.state import population_shapes

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "Kind and shape of the TPU slice; its first chip is used.")
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
    whole = sum(sizes[size] for size in of_all_logits(config, stage))
    told = [f"{part / 1e9:.2f}" for part in parts]
    return [stage, *told, f"{room or '?'}", fits, str(whole), f"{max(sizes) / 1e6:.4g}"]


def main(_):
    config = cli.loaded(CONFIG).to_dict()
    run_config.check(config)
    chip = ahead.chips(TOPOLOGY.value)[0]
    table = Table(title=f"One chip, {chip.device_kind}: GB", title_justify="left")
    for column in ("step", "arguments", "outputs", "temporaries", "in all", "HBM", "fits"):
        table.add_column(column, justify="left" if column == "step" else "right")
    table.add_column("[N, V] arrays", justify="right")
    table.add_column("largest, M numbers", justify="right")
    for stage, (step, shapes) in steps(config).items():
        table.add_row(*row(config, stage, step, shapes, chip))
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    cli.run(main)
