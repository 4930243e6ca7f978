"""Whether a config fits a TPU that is not there, and what it could reach: its steps compiled, nothing run.

  pip install -e '.[train,tpu]'
  python -m experiments.compile --config=configs/large_vocab.py --topology=v5e:1x1

The steps are those that a run compiles: training of students and teacher, evaluation, and decoding of
`experiments.acceptance --decode`. Of each: memory of one chip, on which all of it runs, as XLA plans it; whether the
compiled step holds an array with a number for each of its N predictions and each of the V classes, padded or not;
matrix products, HBM traffic and collectives, loops counted as often as they run; and the least time that these need.
The tokenizer is taken to have `config.data.vocabulary` tokens; a teacher of another run or folder brings its sizes. The
exit code is 1 if a step does not fit.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from experiments import ahead, cli, costs
from jaxdiv import speculative
from jaxdiv.speculative import loop
from jaxdiv.training import config as run_config
from jaxdiv.training import contexts, donors, evaluation, own_text, students, teacher
from jaxdiv.training.state import population_shapes
from jaxdiv.training.workdir import Workdir

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "Kind and shape of the TPU slice; its first chip is used.")
STUDENT, TEACHER, DECODING = "student", "teacher", "decode a round"
TEACHER_EVALUATION, STUDENT_EVALUATION = "evaluate teacher", "evaluate a loss"
GAMMA = 4  # drafts a round
_PLATFORM = "tpu"
_MEMORY = ("step", "arguments", "outputs", "temporaries", "in all", "HBM", "fits", "has [N, V]", "largest, M numbers")
_COSTS = ("step", "GFLOP", "HBM, GB", "collectives: MB sent", "least ms", "products", "HBM", "links", "M tokens/s")
_EXHAUSTED = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class Step:
    """What a run calls.

    Attributes:
      run: the jitted function.
      shapes: of its arguments.
      predictions: positions of a call that logits are made for, N.
      rounds: whether it is a loop without a known end, of which one round is looked at.
    """

    run: Callable
    shapes: tuple
    predictions: int
    rounds: bool = False


def steps(config) -> dict[str, Step]:
    """Each by its name."""
    vocab_size = config["data"]["vocabulary"]
    guide = population_shapes(donors.build(config, vocab_size), 1)
    pupils = population_shapes(students.builder(config, vocab_size), config["seeds"])
    frozen = guide.with_params(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), guide.params))
    write = own_text.writer(config, frozen, pupils, end_of_text=0)
    learn = students.step(config, pupils, students.lesson(config, frozen), write, platform=_PLATFORM)
    made = {STUDENT: _training(config, STUDENT, learn, _begun(students, config, pupils), frozen.params)}
    if not config["teacher"]["checkpoint"]:
        train = teacher.step(config, guide, platform=_PLATFORM)
        made[TEACHER] = _training(config, TEACHER, train, _begun(teacher, config, guide), None)
    return made | _evaluations(config, frozen, pupils) | {DECODING: _decoding(config, vocab_size)}


def _begun(stage, config, model):
    return jax.eval_shape(lambda params: stage.beginning(config, model.with_params(params)), model.params)


def _training(config, stage, run, state, params):
    rows, length = config[stage]["batch_size"], config["data"]["sequence_length"]
    return Step(run, (state, params, _batch(rows, length)), rows * length)


def _batch(*shape):
    types = {"inputs": jnp.int32, "labels": jnp.int32, "weights": jnp.float32}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in types.items()}


def _evaluations(config, guide, pupils):
    """Of a block of held-out windows."""
    length, how = config["data"]["sequence_length"], config["evaluation"]
    rows = evaluation.rows_at_once(config, length, _PLATFORM)
    nothing = np.zeros((0, length), np.int32)
    context = contexts.Context("corpus", nothing, nothing, nothing.astype(np.float32), nothing[:, 0], start=None)
    pass_of, part_of = evaluation.passes(
        config,
        guide,
        pupils,
        context,
        rules=run_config.rules(how["rules"]),
        temperatures=how["temperatures"],
        platform=_PLATFORM,
    )
    batch = _batch(rows, length)
    shared = jax.eval_shape(pass_of, guide.params, batch["inputs"])
    return {
        TEACHER_EVALUATION: Step(pass_of, (guide.params, batch["inputs"]), rows * length),
        STUDENT_EVALUATION: Step(part_of, (pupils.params, *shared, batch), rows * length),
    }


def _decoding(config, vocab_size):
    """Of the beginnings of all held-out documents at once."""
    how = config["evaluation"]
    builds = donors.build(config, vocab_size), students.builder(config, vocab_size)
    target, draft = (nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)).unrolled()) for build in builds)
    prompts = np.zeros((how["documents"], how["prompt_tokens"]), np.int32)
    asked = speculative.prepare(target, draft, prompts, max_tokens=how["generated_tokens"], gamma=GAMMA, stop=0)
    run = jax.jit(functools.partial(loop.run, asked.plan, asked.graphs, stream=asked.stream))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), asked.arrays)
    return Step(run, shapes, how["documents"] * (GAMMA + 1), rounds=True)


def compiled(step: Step, chip: jax.Device) -> jax.stages.Compiled:
    """The step for this chip; raises JaxRuntimeError if it does not fit."""
    here = jax.sharding.SingleDeviceSharding(chip)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), step.shapes)
    return step.run.lower(*placed).compile()


def of_all_logits(config, step: Step) -> set[int]:
    """How many elements an array of all predictions' logits has: of one student or of all seeds, padded or not."""
    classes = config["data"]["vocabulary"], config["teacher"]["padded_vocabulary"]
    return {k * step.predictions * count for k in (1, config["seeds"]) for count in classes if count}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a compiled step takes of a chip.

    Attributes:
      memory: as XLA plans it.
      costs: of a call, or of a round.
      logits: whether an array is as large as all predictions' logits.
      largest: the largest array's number of elements.
    """

    memory: ahead.Memory
    costs: costs.Costs
    logits: bool
    largest: int


def plan(config, step: Step, chip: jax.Device) -> Plan | None:
    """None if the step does not fit."""
    try:
        program = compiled(step, chip)
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        return None
    text = program.as_text()
    sizes, found = ahead.elements(text), costs.of(text)
    if step.rounds:
        found = max(found.unknown, key=lambda body: body.flops, default=found)
    logits = any(sizes[size] for size in of_all_logits(config, step))
    return Plan(ahead.Memory.of(program), found, logits, max(sizes))


def fits(plan: Plan | None, place: ahead.Slice) -> bool:
    return plan is not None and plan.memory.total <= place.kind.hbm * 1e9


def memory_row(name: str, plan: Plan | None, place: ahead.Slice) -> list[str]:
    """Of the table of memory, GB."""
    room, verdict = f"{place.kind.hbm}", "yes" if fits(plan, place) else "no"
    if plan is None:
        return [name, *[""] * 4, room, verdict, "", ""]
    memory = plan.memory
    parts = memory.arguments, memory.outputs, memory.temporaries, memory.total
    told = [f"{part / 1e9:.2f}" for part in parts]
    return [name, *told, room, verdict, "yes" if plan.logits else "no", f"{plan.largest / 1e6:.4g}"]


def costs_row(name: str, step: Step, plan: Plan, place: ahead.Slice) -> list[str]:
    """Of the table of costs; what bounds the step takes 100% of its least time."""
    found, least = plan.costs, ahead.Roofline.of(plan.costs, place)
    kinds = [f"{each.count} {kind}: {_short(each.sent / 1e6)}" for kind, each in found.collectives.items()]
    shares = [f"{part / least.seconds:.0%}" for part in (least.products, least.memory, least.links)]
    return [
        name,
        f"{'≥ ' if found.unknown else ''}{_short(found.flops / 1e9)}",
        _short(found.traffic / 1e9),
        "\n".join(kinds) or "none",
        _short(1e3 * least.seconds),
        *shares,
        _short(step.predictions / least.seconds / 1e6),
    ]


def _short(number):
    return f"{number:,.3g}" if number < 1000 else f"{number:,.0f}"


def main(_):
    with tempfile.TemporaryDirectory() as nothing:
        config = teacher.settle(cli.loaded(CONFIG).to_dict(), Workdir(nothing), typed=cli.typed(CONFIG))
    place, made = ahead.chips(TOPOLOGY.value), steps(config)
    chip = place.devices[0]
    plans = {name: plan(config, step, chip) for name, step in made.items()}
    console = Console(width=120)
    rows = [memory_row(name, found, place) for name, found in plans.items()]
    console.print(_table(f"Memory of one chip, {chip.device_kind}: GB", _MEMORY, rows))
    rows = [costs_row(name, made[name], found, place) for name, found in plans.items() if found]
    console.print(_table("Costs of a call on one chip, and the least time that they need: an estimate", _COSTS, rows))
    console.print(_explained(place))
    return int(not all(fits(found, place) for found in plans.values()))


def _table(title, columns, rows):
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _explained(place):
    kind = place.kind
    return (
        f"The least time is the longest of three, as if they overlapped wholly: products at {kind.flops / 1e12:.0f} "
        f"bfloat16 TFLOP/s, HBM at {kind.bandwidth / 1e9:,.0f} GB/s, a chip's links at {place.interconnect / 1e9:.0f}. "
        f"Loops that nothing ends (≥) count once. A round of decoding is {GAMMA} drafts of each text, all accepted."
    )


if __name__ == "__main__":
    cli.run(main)
