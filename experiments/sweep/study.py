"""A sweep in its work folder: teachers, learning rates, then one cell after the other, each a run
like those of `experiments.distill`."""

import time
from collections.abc import Sequence

import jax

from experiments.common import run_results
from experiments.sweep import runs, stored_sums, time_estimate
from experiments.sweep.cells import Cell
from experiments.sweep.plan import PlannedRun, SweepPlan
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs import processes, progress
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.schema import HEADLINE_GAMMA
from jaxdiv.training import students
from jaxdiv.training.loop import Monitoring

FILE = "sweep.json"
_MAY_CHANGE = (*run_config.DECIDE_NO_RESULT, "config.sweep.extra")


def check(plan: SweepPlan) -> None:
    """Raises ValueError if the folder holds a run, or a sweep of another config; cells may be
    added.

    A folder whose data were never made ready, as after a mistyped path, takes any config.
    """
    root, path = plan.root, plan.root / FILE
    if (root / "config.json").exists():
        raise ValueError(
            f"{root} is the folder of a run; give the sweep one of its own: --workdir={root}-sweep"
        )
    folders = (facts.parent for facts in root.glob("*/*/facts.json"))
    if not path.exists() or not any(DATA_READY in Workdir(folder).facts() for folder in folders):
        return
    changes = run_config.differences(files.read_json(path), _stored_config(plan))
    refused = "; ".join(
        f"{key} is {old!r} there, {new!r} here"
        for key, (old, new) in changes.items()
        if not run_config.within(key, _MAY_CHANGE)
    )
    if refused:
        raise ValueError(
            f"{root} holds a sweep of another config: {refused}; give this one a folder of its "
            f"own: --workdir={root}-2"
        )


def initialize_or_resume(plan: SweepPlan) -> None:
    """Begins a sweep in its folder, or resumes it, as `check` allows."""
    check(plan)
    # All processes read the folder before the first one writes to it.
    processes.barrier("sweep read")
    if processes.is_first():
        files.write_json(plan.root / FILE, _stored_config(plan))


def _stored_config(plan):
    return {**plan.config, "sweep": plan.sweep}


def is_done(plan: SweepPlan, cell: Cell) -> bool:
    """Returns whether a cell was measured, and is left alone; it is measured again without its
    sums."""
    return (plan.workdir("cells", cell.name).root / stored_sums.FILE).exists()


def run(plan: SweepPlan, selected: Sequence[Cell], monitoring: Monitoring | None = None) -> None:
    """Trains and measures the selected cells that are not done.

    Args:
      plan: the sweep.
      selected: of its cells.
      monitoring: of every training.

    Raises:
      loop.Stopped: a signal came in training; the step under way was finished and saved.
    """
    left = [cell for cell in selected if not processes.broadcast_from_first(is_done(plan, cell))]
    # With the base's teacher rates are tuned.
    teachers = [cell.teacher for cell in (plan.cells[0], *left)] if left else []
    for name in dict.fromkeys(teachers):
        runs.prepare_teacher(name, plan.teacher_run(name), monitoring)
    rates = {
        name: runs.tune(name, plan.tuning_runs(name), plan.losses, monitoring)
        for name in dict.fromkeys(map(plan.tuned_student, left))
    }
    estimates = [
        time_estimate.cell_seconds(plan.cell_run(cell).spec(), decoded=cell in plan.decoded)
        for cell in left
    ]
    finished = []
    for i, cell in enumerate(left):
        planned = plan.cell_run(cell, rates[plan.tuned_student(cell)])
        # A cell that was begun before takes only the rest of its time, which scales no estimate.
        whole, start = not planned.workdir.students.exists(), time.monotonic()
        minutes = time_estimate.minutes_left(estimates[i:], finished)
        with progress.event_fields(cell=cell.name):
            progress.log(
                f"cell {selected.index(cell) + 1} of {len(selected)}, {cell.name}: "
                f"{len(plan.losses) * plan.config['seeds']} students, about "
                f"{max(1, round(minutes))} min left",
                style="bold",
            )
            _run_cell(planned, monitoring, decoded=cell in plan.decoded)
        if whole:
            finished.append((estimates[i], time.monotonic() - start))
        jax.clear_caches()  # the next cell has no use for them


def _run_cell(run: PlannedRun, monitoring: Monitoring | None, *, decoded: bool) -> None:
    workdir = run.workdir
    spec, data, model = runs.begin(run)
    students.train(spec, workdir, data, model, monitoring)
    measured = run_results.measure([workdir], decode_gamma=HEADLINE_GAMMA if decoded else None)
    if processes.is_first():
        run_results.write([workdir], measured, output=workdir.root)
        # Written last, since it marks the cell as done.
        stored_sums.write(workdir.root / stored_sums.FILE, measured[0])
    processes.barrier(f"measured {workdir.root.name}")
