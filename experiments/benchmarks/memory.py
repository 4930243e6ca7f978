"""The memory of a run, against what it needs and over its steps.

  python -m experiments.benchmarks.memory --config=configs/quickstart.py --config.student.steps=400

Trains a teacher of one step and then the config's students, as `experiments.distill` does. After
every step it asks JAX for the arrays that live and the system for the process's memory. Device
memory is compared with parameters, optimizer states and one step's temporaries, as XLA plans them.
"""

from experiments.common import startup

startup.begin(__name__)

import pathlib
import resource
import tempfile
from collections.abc import Mapping

import jax
import numpy as np
from absl import flags
from rich.console import Console

from experiments.common import cli
from experiments.tpu import aot
from jaxdiv.runs import config as run_config
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, sharding, students, teacher
from jaxdiv.training.state import Model
from jaxdiv.training.step import initial_state

CONFIG = cli.define_config()
SETTLED = flags.DEFINE_integer(
    "settled", 100, "The step from which on the host's memory must not grow.", lower_bound=1
)


class MemoryTracker:
    """A tracker of bytes after each step: of arrays on devices, and of the process."""

    def __init__(self):
        self.history: list[tuple[int, int]] = []

    def write(self, step: int, students: Mapping, clock: Mapping) -> None:
        """Appends (bytes of the arrays that live, bytes of the process)."""
        live = {id(x): x for x in jax.live_arrays() if not x.is_deleted()}
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        size = sum(x.nbytes for x in live.values())
        self.history.append((size, pages * resource.getpagesize()))

    def close(self) -> None:
        """Does nothing: the history outlives the training."""


def needed(spec: RunSpec, target: Model, data: run_data.RunData) -> dict[str, int]:
    """Returns the bytes of what a step can't do without, by name."""
    mesh, stage = sharding.make_mesh(spec), spec.student_stage
    model = students.untrained(spec, data.vocab_size, mesh)
    state = initial_state(stage, model, mesh)
    outputs = students.teacher_outputs(model, target)
    step = students.step(spec, model, outputs, mesh=mesh)
    rows = sharding.BatchSharding(mesh, stage.batch_size)
    batch = rows.put_local(next(data.batches(stage, rows.local_rows)))
    program = step.lower(state, target.params, batch).compile()
    parts = {
        "teacher": target.params,
        "students": state.params,
        "optimizer states": state.opt_state,
    }
    sizes = {name: sum(x.nbytes for x in jax.tree.leaves(tree)) for name, tree in parts.items()}
    return sizes | {"temporaries": aot.Memory.of(program).temporaries}


def train(config: Mapping) -> tuple[np.ndarray, dict[str, int]]:
    """Returns bytes [steps, 2] of arrays and process after each step, and what a step needs."""
    tracker, spec = MemoryTracker(), RunSpec.from_config(config)
    with tempfile.TemporaryDirectory(prefix="jaxdiv-memory-") as name:
        run = Workdir(name)
        run.initialize_or_resume(config)
        data = run_data.prepare(spec, run)
        target = teacher.prepare(spec, run, data)
        monitoring = loop.Monitoring(trackers=[lambda stage: tracker])
        students.train(spec, run, data, target, monitoring)
        return np.array(tracker.history), needed(spec, target, data)


def main(_):
    config = cli.load_config(CONFIG)
    optimizer = {**config["teacher"]["optimizer"], "warmup_steps": 1}
    config["teacher"].update({"steps": 2, "optimizer": optimizer})
    run_config.check(config)
    settled, every = SETTLED.value, config["checkpoint"]["every"]
    if config["student"]["steps"] <= settled:
        raise ValueError(f"--config.student.steps must be above --settled={settled}")
    history, parts = train(config)
    mib = {part: size / 2**20 for part, size in parts.items()}
    whole, (live, host) = sum(mib.values()), history.T / 2**20
    peak = live.max() + mib["temporaries"]
    early, late = np.median(host[settled : settled + every]), np.median(host[-every:])
    lines = [
        f"{', '.join(f'{part} {size:.1f}' for part, size in mib.items())}: {whole:.1f} MiB",
        f"arrays that live, at most, and temporaries: {peak:.1f} MiB, {peak / whole:.3f} ×",
        f"process, median of the {every} steps after {settled}: {early:.0f} MiB, of the last "
        f"{every}: {late:.0f} ({late / early - 1:+.1%}); at most: {host.max():.0f}",
    ]
    Console(width=110).print("\n".join(lines), highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
