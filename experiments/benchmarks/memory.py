"""Whether a run's memory is what it must be, and stays so.

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
from jaxdiv.runs import sharding
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, students, teacher
from jaxdiv.training.state import Model

CONFIG = cli.define_config()
SETTLED = flags.DEFINE_integer(
    "settled", 100, "The step from which on the host's memory must not grow.", lower_bound=1
)


class Memory:
    """A tracker of bytes after each step: of arrays on devices, and of the process."""

    def __init__(self, seen: list[tuple[int, int]]):
        self._seen = seen

    def write(self, step: int, students: Mapping, clock: Mapping) -> None:
        live = {id(x): x for x in jax.live_arrays() if not x.is_deleted()}
        self._seen.append((sum(x.nbytes for x in live.values()), _resident()))

    def close(self) -> None:
        pass


def _resident():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def needed(spec: RunSpec, target: Model, data: run_data.RunData) -> dict[str, int]:
    """Bytes of what a step can't do without, by name."""
    mesh, stage = sharding.make_mesh(spec), spec.student_stage
    model = students.untrained(spec, data.vocab_size, mesh)
    state = students.initial_state(stage, model, mesh)
    outputs = students.teacher_outputs(spec.student, target)
    step = students.step(spec, model, outputs, mesh=mesh)
    rows = sharding.BatchSharding(mesh, stage.batch_size)
    batch = rows.put_local(next(run_data.batches(stage, data, mesh)))
    program = step.lower(state, target.params, batch).compile()
    return {
        "teacher": _size(target.params),
        "students": _size(state.params),
        "optimizer states": _size(state.opt_state),
        "temporaries": aot.Memory.of(program).temporaries,
    }


def _size(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def main(_):
    config = cli.load_config(CONFIG)
    config["teacher"].update(
        {"steps": 2, "optimizer": {**config["teacher"]["optimizer"], "warmup_steps": 1}}
    )
    run_config.check(config)
    if config["student"]["steps"] <= SETTLED.value:
        raise ValueError(f"--config.student.steps must be above --settled={SETTLED.value}")
    seen: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory(prefix="jaxdiv-memory-") as name:
        run = Workdir(name)
        run.initialize_or_resume(config)
        spec = RunSpec.from_config(config)
        data = run_data.prepare(spec, run)
        target = teacher.prepare(spec, run, data)
        monitoring = loop.Monitoring(trackers=[lambda stage: Memory(seen)])
        students.train(spec, run, data, target, monitoring)
        parts = needed(spec, target, data)
    live, host = np.array(seen).T
    whole, every = sum(parts.values()), config["checkpoint"]["every"]
    early, late = (
        np.median(part) / 2**20 for part in (host[SETTLED.value :][:every], host[-every:])
    )
    told = [
        ", ".join(f"{part} {size / 2**20:.1f}" for part, size in parts.items())
        + f": {whole / 2**20:.1f} MiB",
        f"arrays that live, at most, and temporaries: {(live.max() + parts['temporaries']) / 2**20:.1f} MiB, "
        f"{(live.max() + parts['temporaries']) / whole:.3f} ×",
        f"process, median of the {every} steps after {SETTLED.value}: {early:.0f} MiB, of the last {every}: {late:.0f} "
        f"({late / early - 1:+.1%}); at most: {host.max() / 2**20:.0f}",
    ]
    Console(width=110).print("\n".join(told), highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
