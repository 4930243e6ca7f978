"""A sweep in its work folder: teachers, learning rates, then one cell after the other, each a run
like those of `experiments.distill`."""

from collections.abc import Sequence

import jax

from experiments.common import run_results
from experiments.sweep import runs, stored_sums, time_estimate, tuning
from experiments.sweep.cells import Cell
from experiments.sweep.plan import PlannedRun, SweepPlan
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs import processes, progress
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
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


def estimated_seconds(plan: SweepPlan, cell: Cell) -> float:
    """Estimates what a cell takes that has not begun."""
    spec = RunSpec.from_config(plan.cell_run(cell).config)
    return time_estimate.cell_seconds(spec, decoded=cell in plan.decoded)


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
    first = plan.workdir("teachers", plan.cells[0].teacher)
    for name in plan.teachers(left) if left else ():
        runs.prepare_teacher(name, plan.teacher_run(name), first, monitoring)
    rates = {
        name: tuning.rates(name, plan.tuning_runs(name), plan.losses, first, monitoring)
        for name in dict.fromkeys(map(plan.tuned_student, left))
    }
    remaining = time_estimate.RemainingTime([estimated_seconds(plan, cell) for cell in left])
    for cell in left:
        planned = plan.cell_run(cell, rates[plan.tuned_student(cell)])
        # A cell that was begun before takes only the rest of its time, which scales no estimate.
        whole = not planned.workdir.students.exists()
        with remaining.part(whole=whole), progress.event_fields(cell=cell.name):
            progress.log(
                f"cell {selected.index(cell) + 1} of {len(selected)}, {cell.name}: "
                f"{len(plan.losses) * plan.config['seeds']} students, about "
                f"{max(1, round(remaining.minutes()))} min left",
                style="bold",
            )
            _run_cell(planned, first, monitoring, decoded=cell in plan.decoded)
        jax.clear_caches()  # the next cell has no use for them


def _run_cell(
    planned: PlannedRun, first: Workdir, monitoring: Monitoring | None, *, decoded: bool
) -> None:
    workdir = planned.workdir
    spec, data, model = runs.begin(planned, first)
    students.train(spec, workdir, data, model, monitoring)
    gamma = stored_sums.DECODED_GAMMA if decoded else None
    measured = run_results.measure([workdir], decode_gamma=gamma)
    if processes.is_first():
        run_results.write([workdir], measured, output=workdir.root)
        # Written last, since it marks the cell as done.
        stored_sums.write(workdir.root / stored_sums.FILE, measured[0])
    processes.barrier(f"measured {workdir.root.name}")
