"""Compiles a config's steps for an absent TPU: do they fit, and how fast could they be?

  pip install -e '.[train,tpu]'
  python -m experiments.compile --config=configs/large_vocab.py --topology=v5e:1x1
  python -m experiments.compile --config=configs/llama_8b.py --topology=v5e:2x4 --steps=student

Nothing is run. The steps are those of a run: training of students and teacher, evaluation of the
teacher and of one loss's students, and a round of `experiments.acceptance --decode`. Two tables say
what each step takes: the memory of a chip as XLA plans it, and whether any array holds the logits
of all predictions; matrix products, HBM traffic, collectives, and the least time for them.

The tokenizer counts as one of `config.data.vocabulary` tokens. A pretrained teacher brings its own
sizes. The exit code is 1 if a step does not fit; decoding, which runs on one chip, does not count.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses
import tempfile
from collections.abc import Collection

import jax
from absl import flags
from jax.sharding import Mesh
from rich.console import Console

from experiments.common import cli
from experiments.tpu import aot, cost_model, steps
from jaxdiv import files
from jaxdiv.reporting.tables import Table
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, sharding, teacher_sources

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "Kind and shape of the TPU slice.")
STEPS = flags.DEFINE_list(
    "steps", [], f"Steps to compile, of {', '.join(steps.NAMES)}; all if not given."
)
JSON = flags.DEFINE_string("json", None, "A JSON file for the results, besides the tables.")
_MEMORY_COLUMNS = (
    *("step", "arguments", "outputs", "temporaries", "in all", "HBM", "fits", "has [N, V]"),
    "largest, M numbers",
)
_COST_COLUMNS = (
    *("step", "GFLOP", "HBM, GB", "collectives: MB sent", "least ms", "products", "HBM", "links"),
    "M tokens/s",
)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The memory and the costs of a compiled step, for one chip.

    Attributes:
      memory: as XLA plans it.
      costs: of a call, or of a round.
      has_logits: whether an array is as large as the logits of all predictions.
      largest: the number of elements of the largest array.
    """

    memory: aot.Memory
    costs: cost_model.Costs
    has_logits: bool
    largest: int


def compile_step(spec: RunSpec, step: steps.UncompiledStep, mesh: Mesh) -> CompiledStep | None:
    """Returns None if the step does not fit the chips of `mesh`."""
    try:
        program = step.run.lower(*step.shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    text = program.as_text()
    sizes, costs = aot.elements(text), cost_model.estimate(text)
    if step.rounds:
        costs = max(costs.unknown, key=lambda body: body.flops, default=costs)
    has_logits = any(sizes[size] for size in steps.logits_sizes(spec, step, mesh))
    return CompiledStep(aot.Memory.of(program), costs, has_logits, max(sizes))


def fits(compiled: CompiledStep | None, tpu: aot.Slice) -> bool:
    return compiled is not None and compiled.memory.total <= tpu.kind.hbm * 1e9


def memory_row(name: str, compiled: CompiledStep | None, tpu: aot.Slice) -> list[str]:
    """Returns a step's row of the memory table, in GB."""
    verdict = [f"{tpu.kind.hbm}", "yes" if fits(compiled, tpu) else "no"]
    if compiled is None:
        return [name, *[""] * 4, *verdict, "", ""]
    gigabytes = [f"{part / 1e9:.2f}" for part in dataclasses.astuple(compiled.memory)]
    has_logits = "yes" if compiled.has_logits else "no"
    return [name, *gigabytes, *verdict, has_logits, f"{compiled.largest / 1e6:.4g}"]


def costs_row(
    name: str, step: steps.UncompiledStep, compiled: CompiledStep, tpu: aot.Slice
) -> list[str]:
    """Returns a step's row of the table of costs; what bounds the step takes 100% of its time."""
    costs, parts = compiled.costs, tpu.least_seconds(compiled.costs).values()
    seconds, collectives = max(parts), costs.collectives.items()
    return [
        name,
        ("≥ " if costs.unknown else "") + _round(costs.flops / 1e9),
        _round(costs.traffic / 1e9),
        "\n".join(f"{each.runs} {kind}: {_round(each.sent / 1e6)}" for kind, each in collectives)
        or "none",
        _round(1e3 * seconds),
        *(f"{part / seconds:.0%}" for part in parts),
        _round(step.predictions / seconds / 1e6),
    ]


def _round(number: float) -> str:
    return f"{number:,.3g}" if number < 1000 else f"{number:,.0f}"


def record(
    step: steps.UncompiledStep, compiled: CompiledStep | None, tpu: aot.Slice
) -> dict[str, object]:
    """Returns a step's entry for --json: predictions of a call, bytes of a chip, least seconds."""
    hbm = tpu.kind.hbm * 10**9
    entry = {"fits": fits(compiled, tpu), "hbm": hbm, "predictions": step.predictions}
    if compiled is not None:
        seconds = tpu.least_seconds(compiled.costs)
        entry |= {"memory": compiled.memory.total, "seconds": seconds}
    return entry


def choose(names: Collection[str], step_names: Collection[str]) -> Collection[str]:
    """Returns the names, or all steps if there are none. Raises ValueError for an unknown name."""
    for name in names:
        if name not in step_names:
            raise ValueError(
                f"--steps={','.join(names)}: there is no step {name!r}; "
                f"known: {', '.join(step_names)}"
            )
    return names or step_names


def main(_):
    with tempfile.TemporaryDirectory() as empty:
        config = teacher_sources.resolve(
            cli.load_config(CONFIG), Workdir(empty), typed=cli.overrides(CONFIG)
        )
    spec = RunSpec.from_config(config)
    run_data.require_text(spec.data)
    names = choose(STEPS.value, steps.names(spec))
    tpu = aot.describe_slice(TOPOLOGY.value)
    mesh = sharding.make_mesh(spec, tpu.devices)
    uncompiled = steps.build(spec, mesh, names)
    compiled = {name: compile_step(spec, step, mesh) for name, step in uncompiled.items()}
    kind, finished = tpu.kind, {name: step for name, step in compiled.items() if step}
    axes = "".join(f", {axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    title = f"Memory of a chip, GB: {mesh.size} {tpu.devices[0].device_kind}{axes}"
    rows = [memory_row(name, step, tpu) for name, step in compiled.items()]
    costs_title = "Costs of a call for a chip, and the least time for them: an estimate"
    costs = [costs_row(name, uncompiled[name], step, tpu) for name, step in finished.items()]
    Console(width=120).print(
        Table(_MEMORY_COLUMNS, rows, title).terminal(lines=True),
        Table(_COST_COLUMNS, costs, costs_title).terminal(lines=True),
        "The least time is the longest of three, as if they overlapped entirely: products at "
        f"{kind.flops / 1e12:.0f} bfloat16 TFLOP/s, HBM at {kind.bandwidth / 1e9:,.0f} GB/s, a "
        f"chip's links at {tpu.interconnect / 1e9:.0f}. Loops without a known end (≥) count once. "
        f"A round of decoding is {steps.GAMMA} drafts of each text, all accepted.",
    )
    if JSON.value:
        entries = {name: record(uncompiled[name], step, tpu) for name, step in compiled.items()}
        files.write_json(JSON.value, {"mesh": dict(mesh.shape), "steps": entries})
    return int(not all(fits(compiled[name], tpu) for name in names if name != steps.DECODE))


if __name__ == "__main__":
    cli.run(main)
