"""A sweep in its work folder: teachers, learning rates, then a cell after the other, each a run as
distill makes it."""

from collections.abc import Sequence
from typing import Any

import jax

from experiments.common import run_results
from experiments.sweep import grid, pace, runs, sums, teachers, tuning
from experiments.sweep.grid import Cell
from experiments.sweep.plan import Plan
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs import processes, progress
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import students

FILE = "sweep.json"
_MAY_CHANGE = (*run_config.DECIDE_NO_RESULT, "config.sweep.extra")


def check(plan: Plan) -> None:
    """Raises ValueError if the folder holds a run, or a sweep of another config; more cells may
    come.

    A folder in which no data was ever made ready, as after a mistyped path, takes any config.
    """
    path = plan.root / FILE
    if (plan.root / "config.json").exists():
        raise ValueError(
            f"{plan.root} is the folder of a run; give the sweep one of its own: --workdir={plan.root}-sweep"
        )
    if path.exists() and any(
        DATA_READY in Workdir(found.parent).facts() for found in plan.root.glob("*/*/facts.json")
    ):
        changes = run_config.differences(files.read_json(path), plan.whole())
        refused = {
            key: pair for key, pair in changes.items() if not run_config.within(key, _MAY_CHANGE)
        }
        if refused:
            listed = "; ".join(
                f"{key} is {there!r} there, {here!r} here" for key, (there, here) in refused.items()
            )
            raise ValueError(
                f"{plan.root} holds a sweep of another config: {listed}; give this one a folder of its own: "
                f"--workdir={plan.root}-2"
            )


def initialize_or_resume(plan: Plan) -> None:
    """Begins a sweep in its folder, or goes on with it, as `check` allows."""
    check(plan)
    processes.barrier("sweep read")  # by all, before the first writes
    if processes.is_first():
        files.write_json(plan.root / FILE, plan.whole())


def is_done(plan: Plan, cell: Cell) -> bool:
    """Whether a cell was measured; it is left alone then. Without `sums.FILE` it is measured
    anew."""
    return (plan.cell_run(cell).root / sums.FILE).exists()


def run(plan: Plan, cells: Sequence[Cell], **watched: Any) -> None:
    """Trains and measures those of `cells` that are not done.

    `watched` is what `loop.run_stage` takes of `profile` and `also`.

    Raises:
      loop.Stopped: a signal came in training; the step under way was finished and saved.
    """
    left = [cell for cell in cells if not processes.broadcast_from_first(is_done(plan, cell))]
    for name in plan.teachers(left) if left else ():
        teachers.prepare(plan, name, **watched)
    rates = {
        name: tuning.rates(plan, name, **watched)
        for name in dict.fromkeys(map(plan.tuned_as, left))
    }
    decoded = grid.decoded(plan.sweep, plan.cells)
    going = pace.Pace([pace.seconds(plan, cell, decoded=cell in decoded) for cell in left])
    for cell in left:
        begun = plan.cell_run(cell).students.exists()  # of which only the rest is timed
        with going.part(whole=not begun), progress.event_fields(cell=cell.name):
            _tell(plan, cell, cells, going.left())
            _run_cell(
                plan, cell, rates[plan.tuned_as(cell)], decoded=cell in decoded, watched=watched
            )
        jax.clear_caches()  # of no use to the next one


def _tell(plan, cell, cells, minutes):
    number, count = cells.index(cell) + 1, len(plan.losses) * plan.config["seeds"]
    what = f"cell {number} of {len(cells)}, {cell.name}: {count} students"
    progress.log(f"{what}, about {max(1, round(minutes))} min left", style="bold")


def _run_cell(plan, cell, rates, *, decoded, watched):
    place = plan.cell_run(cell)
    config, data, guide = runs.begin(plan, place, plan.cell_config(cell, rates))
    students.train(config, place, data, guide, **watched)
    measured = run_results.measure([place], decode_gamma=sums.DECODED_GAMMA if decoded else None)
    if processes.is_first():
        run_results.write([place], measured, output=place.root)
        sums.write(place.root / sums.FILE, measured[0])  # last, as it says that all is there
    processes.barrier(f"measured {cell.name}")
