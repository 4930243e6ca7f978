"""A sweep in its work folder: teachers, learning rates, then a cell after the other, each a run as distill makes it."""

from collections.abc import Sequence
from typing import Any

import jax

from experiments import measuring
from experiments.sweep import grid, pace, sums, teachers, tuning
from experiments.sweep.grid import Cell
from experiments.sweep.plan import Plan
from experiments.sweep.plan import teachers as teachers_of
from jaxdiv import files
from jaxdiv.training import config as run_config
from jaxdiv.training import corpus, processes, progress, students, teacher
from jaxdiv.training.workdir import DATA_READY

FILE = "sweep.json"
_MAY_CHANGE = ("config.mesh", "config.checkpoint", "config.log", "config.sweep.extra")


def claim(plan: Plan) -> None:
    """Begins a sweep in its folder, or goes on with one of the same config; more cells may come.

    A folder in which no data was ever made ready, as after a mistyped path, takes the new config.

    Raises:
      ValueError: it holds a sweep of another config, or a run.
    """
    path, wanted = plan.root / FILE, plan.whole()
    if (plan.root / "config.json").exists():
        raise ValueError(
            f"{plan.root} is the folder of a run; give the sweep one of its own: --workdir={plan.root}-sweep"
        )
    if path.exists() and any(DATA_READY in plan.teacher_run(name).facts() for name in plan.sweep["teachers"]):
        changes = run_config.differences(files.read_json(path), wanted)
        refused = {key: pair for key, pair in changes.items() if not run_config.within(key, _MAY_CHANGE)}
        if refused:
            listed = "; ".join(f"{key} is {there!r} there, {here!r} here" for key, (there, here) in refused.items())
            raise ValueError(
                f"{plan.root} holds a sweep of another config: {listed}; give this one a folder of its own: "
                f"--workdir={plan.root}-2"
            )
    processes.meet("sweep read")  # by all, before the first writes
    if processes.is_first():
        files.write_json(path, wanted)


def is_done(plan: Plan, cell: Cell) -> bool:
    """Whether a cell was measured; it is left alone then."""
    return plan.cell_run(cell).results.exists()


def run(plan: Plan, cells: Sequence[Cell], **watched: Any) -> None:
    """Trains and measures those of `cells` that are not done.

    `watched` is what `loop.run_stage` takes of `profile` and `also`.

    Raises:
      loop.Stopped: a signal came in training; the step under way was finished and saved.
    """
    left = [cell for cell in cells if not processes.from_first(is_done(plan, cell))]
    for name in teachers_of(left):
        teachers.prepare(plan, name, **watched)
    rates = {name: tuning.rates(plan, name, **watched) for name in dict.fromkeys(map(plan.tuned_as, left))}
    decoded = grid.decoded(plan.sweep, plan.cells)
    going = pace.Pace([pace.seconds(plan, cell, decoded=cell in decoded) for cell in left])
    for cell in left:
        going.begin()
        with progress.place(cell=cell.name):
            _tell(plan, cell, cells, going.left())
            _run_cell(plan, cell, rates[plan.tuned_as(cell)], decoded=cell in decoded, watched=watched)
        going.end()
        jax.clear_caches()  # of no use to the next one


def _tell(plan, cell, cells, minutes):
    number, count = cells.index(cell) + 1, len(plan.losses) * plan.config["seeds"]
    what = f"cell {number} of {len(cells)}, {cell.name}: {count} students"
    progress.say(f"{what}, about {max(1, round(minutes))} min left", style="bold")


def _run_cell(plan, cell, rates, *, decoded, watched):
    place = plan.cell_run(cell)
    config = teacher.settle(plan.cell_config(cell, rates), place, typed={})
    place.claim(config)
    data = corpus.prepare(config, place)
    students.train(config, place, data, teacher.prepare(config, place, data), **watched)
    measured = measuring.measure([place], decode_gamma=sums.DECODED_GAMMA if decoded else None)
    if processes.is_first():
        sums.write(place.root / sums.FILE, measured[0])
        measuring.write([place], measured, output=place.root)
    processes.meet(f"measured {cell.name}")
