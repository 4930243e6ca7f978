"""Whether a config fits a TPU that is not there, and what it could reach: its steps compiled,
nothing run.

  pip install -e '.[train,tpu]'
  python -m experiments.compile --config=configs/large_vocab.py --topology=v5e:1x1
  python -m experiments.compile --config=configs/llama_8b.py --topology=v5e:2x4 --steps=student

The steps are those that a run compiles: training of students and teacher, evaluation of the teacher
  and of a loss's
students, and a round of `experiments.acceptance --decode`. Of each: memory of one chip, on which
all of it runs, as XLA plans it; whether the compiled step holds an array with a number for each of
its N predictions and each of the V classes, padded or not; matrix products, HBM traffic and
collectives, loops counted as often as they run; and the least time that these need. The tokenizer
is taken to have `config.data.vocabulary` tokens; a teacher of another run or folder brings its
sizes. The exit code is 1 if a step does not fit; decoding, which is of one chip, does not count.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import tempfile
from collections.abc import Collection, Mapping

import jax
from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments.common import cli
from experiments.tpu import aot, cost_model, programs
from jaxdiv import files
from jaxdiv.runs import sharding
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, teacher

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "Kind and shape of the TPU slice.")
STEPS = flags.DEFINE_list(
    "steps", [], f"Which to compile, of {', '.join(programs.NAMES)}; all if not given."
)
JSON = flags.DEFINE_string("json", None, "A JSON file to write what was found to, besides.")
_MEMORY = (
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
_COSTS = (
    "step",
    "GFLOP",
    "HBM, GB",
    "collectives: MB sent",
    "least ms",
    "products",
    "HBM",
    "links",
    "M tokens/s",
)
_EXHAUSTED = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a compiled step takes of a chip.

    Attributes:
      memory: as XLA plans it.
      costs: of a call, or of a round.
      logits: whether an array is as large as all predictions' logits.
      largest: the largest array's number of elements.
    """

    memory: aot.Memory
    costs: cost_model.Costs
    logits: bool
    largest: int


def plan(config: Mapping, step: programs.Step, mesh: Mesh) -> Plan | None:
    """None if the step does not fit."""
    try:
        program = step.run.lower(*step.shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        return None
    text = program.as_text()
    sizes, found = aot.elements(text), cost_model.of(text)
    if step.rounds:
        found = max(found.unknown, key=lambda body: body.flops, default=found)
    logits = any(sizes[size] for size in programs.of_all_logits(config, step, mesh))
    return Plan(aot.Memory.of(program), found, logits, max(sizes))


def fits(plan: Plan | None, place: aot.Slice) -> bool:
    return plan is not None and plan.memory.total <= place.kind.hbm * 1e9


def memory_row(name: str, plan: Plan | None, place: aot.Slice) -> list[str]:
    """Of the table of memory, GB."""
    room, verdict = f"{place.kind.hbm}", "yes" if fits(plan, place) else "no"
    if plan is None:
        return [name, *[""] * 4, room, verdict, "", ""]
    memory = plan.memory
    parts = memory.arguments, memory.outputs, memory.temporaries, memory.total
    told = [f"{part / 1e9:.2f}" for part in parts]
    return [name, *told, room, verdict, "yes" if plan.logits else "no", f"{plan.largest / 1e6:.4g}"]


def costs_row(name: str, step: programs.Step, plan: Plan, place: aot.Slice) -> list[str]:
    """Of the table of costs; what bounds the step takes 100% of its least time."""
    found, least = plan.costs, aot.Roofline.of(plan.costs, place)
    kinds = [
        f"{each.count} {kind}: {_short(each.sent / 1e6)}"
        for kind, each in found.collectives.items()
    ]
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


def chosen(asked: Collection[str], known: Collection[str]) -> Collection[str]:
    """The names asked for, or all. Raises ValueError for one that is not known."""
    for name in asked:
        if name not in known:
            raise ValueError(
                f"--steps={','.join(asked)}: there is no step {name!r}; known: {', '.join(known)}"
            )
    return asked or known


def record(step: programs.Step, plan: Plan | None, place: aot.Slice) -> dict:
    """For --json: predictions of a call, bytes of a chip, and of what fits seconds by what they are
    needed for."""
    found = {
        "fits": fits(plan, place),
        "hbm": place.kind.hbm * 10**9,
        "predictions": step.predictions,
    }
    if plan is None:
        return found
    return found | {
        "memory": plan.memory.total,
        "seconds": dataclasses.asdict(aot.Roofline.of(plan.costs, place)),
    }


def main(_):
    with tempfile.TemporaryDirectory() as nothing:
        config = teacher.resolve(
            cli.loaded(CONFIG).to_dict(), Workdir(nothing), typed=cli.typed(CONFIG)
        )
    run_data.refuse_images(config)
    names = chosen(STEPS.value, programs.known(config))
    place = aot.chips(TOPOLOGY.value)
    mesh = sharding.make(config, place.devices)
    made = programs.of(config, mesh, names)
    plans = {name: plan(config, step, mesh) for name, step in made.items()}
    _print(made, plans, place, mesh)
    if JSON.value:
        records = {name: record(made[name], found, place) for name, found in plans.items()}
        files.write_json(JSON.value, {"mesh": dict(mesh.shape), "steps": records})
    return int(
        not all(fits(found, place) for name, found in plans.items() if name != programs.DECODE)
    )


def _print(made, plans, place, mesh):
    console = Console(width=120)
    rows = [memory_row(name, found, place) for name, found in plans.items()]
    console.print(_table(f"Memory of a chip, GB: {_told(place, mesh)}", _MEMORY, rows))
    rows = [costs_row(name, made[name], found, place) for name, found in plans.items() if found]
    console.print(
        _table(
            "Costs of a call for a chip, and the least time that they need: an estimate",
            _COSTS,
            rows,
        )
    )
    console.print(_explained(place))


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
        f"Loops that nothing ends (≥) count once. A round of decoding is {programs.GAMMA} drafts of each text, all "
        "accepted."
    )


if __name__ == "__main__":
    cli.run(main)
