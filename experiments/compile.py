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
import math
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from experiments import ahead, cli, costs
from jaxdiv import speculative
from jaxdiv.models import meshes
from jaxdiv.speculative import loop
from jaxdiv.training import config as run_config
from jaxdiv.training import contexts, donors, evaluation, own_text, sharding, students, teacher
from jaxdiv.training.state import population_shapes
from jaxdiv.training.workdir import Workdir

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "Kind and shape of the TPU slice.")
STUDENT, TEACHER, DECODING = "student", "teacher", "decode a round"
TEACHER_EVALUATION, STUDENT_EVALUATION = "evaluate teacher", "evaluate a loss"
GAMMA = 4  # drafts a round
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


def steps(config, mesh: Mesh) -> dict[str, Step]:
    """Each by its name, its arguments where a run on the mesh has them; decoding is of one chip."""
    vocab_size = config["data"]["vocabulary"]
    guide = population_shapes(donors.build(config, vocab_size), 1, mesh)
    pupils = population_shapes(students.builder(config, vocab_size), config["seeds"], mesh)
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), guide.params)
    frozen = guide.with_params(sharding.shapes(single, mesh, stacked=False))
    write = own_text.writer(config, frozen, pupils, end_of_text=0)
    learn = students.step(config, pupils, students.lesson(config, frozen), write, mesh=mesh)
    made = {STUDENT: _training(config, STUDENT, mesh, learn, _begun(students, config, pupils, mesh), frozen.params)}
    if not config["teacher"]["checkpoint"]:
        train = teacher.step(config, guide, mesh=mesh)
        made[TEACHER] = _training(config, TEACHER, mesh, train, _begun(teacher, config, guide, mesh), None)
    return made | _evaluations(config, frozen, pupils, mesh) | {DECODING: _decoding(config, vocab_size, mesh)}


def _begun(stage, config, model, mesh):
    begin = functools.partial(stage.beginning, config, mesh=mesh)
    shapes = jax.eval_shape(lambda params: begin(model.with_params(params)), model.params)
    return sharding.shapes(shapes, mesh)


def _training(config, stage, mesh, run, state, params):
    rows, length = config[stage]["batch_size"], config["data"]["sequence_length"]
    return Step(run, (state, params, _batch(sharding.Rows(mesh, rows), length)), rows * length)


def _batch(rows, length):
    types = {"inputs": jnp.int32, "labels": jnp.int32, "weights": jnp.float32}
    shape, where = (rows.padded, length), rows.sharding
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in types.items()}


def _evaluations(config, guide, pupils, mesh):
    """Of a block of held-out windows."""
    length, how = config["data"]["sequence_length"], config["evaluation"]
    rows = evaluation.rows_at_once(config, length, mesh)
    nothing = np.zeros((0, length), np.int32)
    context = contexts.Context("corpus", nothing, nothing, nothing.astype(np.float32), nothing[:, 0], start=None)
    pass_of, part_of = evaluation.passes(
        config,
        guide,
        pupils,
        context,
        mesh,
        rules=run_config.rules(how["rules"]),
        temperatures=how["temperatures"],
    )
    batch = _batch(sharding.Rows(mesh, rows), length)
    shared = _shared(jax.eval_shape(pass_of, guide.params, batch["inputs"]), guide, mesh)
    return {
        TEACHER_EVALUATION: Step(pass_of, (guide.params, batch["inputs"]), rows * length),
        STUDENT_EVALUATION: Step(part_of, (pupils.params, *shared, batch), rows * length),
    }


def _shared(made, guide, mesh):
    """Where the teacher's pass leaves what it makes: by rows, but for its head."""
    rows = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
    output, logits = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), made)
    return dataclasses.replace(output, head=nnx.to_pure_dict(guide.params)["head"]), logits


def _decoding(config, vocab_size, mesh):
    """Of the beginnings of all held-out documents at once."""
    how = config["evaluation"]
    builds = donors.build(config, vocab_size), students.builder(config, vocab_size)
    target, draft = (nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)).unrolled()) for build in builds)
    prompts = np.zeros((how["documents"], how["prompt_tokens"]), np.int32)
    asked = speculative.prepare(target, draft, prompts, max_tokens=how["generated_tokens"], gamma=GAMMA, stop=0)
    run = jax.jit(functools.partial(loop.run, asked.plan, asked.graphs, stream=asked.stream))
    here = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), asked.arrays)
    return Step(run, shapes, how["documents"] * (GAMMA + 1), rounds=True)


def of_all_logits(config, step: Step, mesh: Mesh) -> set[int]:
    """How many elements an array of a chip's logits has: of one student or of all seeds, of classes padded or not."""
    rows, tensor = math.prod(mesh.shape[axis] for axis in meshes.ROWS), mesh.shape["tensor"]
    classes = {config["data"]["vocabulary"], config["teacher"]["padded_vocabulary"]} - {0}
    predictions = step.predictions if step.rounds else -(-step.predictions // rows)
    return {k * predictions * count // n for k in (1, config["seeds"]) for count in classes for n in (1, tensor)}


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


def plan(config, step: Step, mesh: Mesh) -> Plan | None:
    """None if the step does not fit."""
    try:
        program = step.run.lower(*step.shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        return None
    text = program.as_text()
    sizes, found = ahead.elements(text), costs.of(text)
    if step.rounds:
        found = max(found.unknown, key=lambda body: body.flops, default=found)
    logits = any(sizes[size] for size in of_all_logits(config, step, mesh))
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
    place = ahead.chips(TOPOLOGY.value)
    mesh = sharding.make(config, place.devices)
    made = steps(config, mesh)
    plans = {name: plan(config, step, mesh) for name, step in made.items()}
    console = Console(width=120)
    rows = [memory_row(name, found, place) for name, found in plans.items()]
    console.print(_table(f"Memory of a chip, GB: {_told(place, mesh)}", _MEMORY, rows))
    rows = [costs_row(name, made[name], found, place) for name, found in plans.items() if found]
    console.print(_table("Costs of a call for a chip, and the least time that they need: an estimate", _COSTS, rows))
    console.print(_explained(place))
    return int(not all(fits(found, place) for name, found in plans.items() if name != DECODING))


def _told(place, mesh):
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    return f"{mesh.size} {place.devices[0].device_kind}" + (f", {sizes}" if sizes else "")


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
