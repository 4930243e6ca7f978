"""Compares training losses of drafts by student, teacher, training context and temperature.

  python -m experiments.sweep --config=configs/choose.py --workdir=runs/choose

Each cell is a run like those of `experiments.distill`, in WORKDIR/cells/NAME, with a teacher of
WORKDIR/teachers and learning rates that were tuned for each loss in WORKDIR/tuning; every program
works on these folders. The same command resumes where an earlier one stopped, and leaves finished
cells alone. To run a part, and print the tables of that part:

  --cells='adapter1-*,decoder1-sharp-corpus-T1' --losses=kl,tv,jsd --list

`--config=configs/choose.py:quick` is a first look. The results are in choose.csv and ranks.csv;
claims.csv has what papers report beside them.
"""

from experiments.common import startup

startup.begin(__name__)

from absl import flags

from experiments.common import cli, watch_flags
from experiments.sweep import (
    cells,
    claims,
    comparisons,
    ranking,
    report,
    runs,
    stored_sums,
    study,
    time_estimate,
)
from experiments.sweep import plan as sweep_plan
from jaxdiv import files
from jaxdiv.runs import lock, processes
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import loop, sharding

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/choose", "The sweep's folder; it may be gs://BUCKET/FOLDER."
)
CELLS = flags.DEFINE_list(
    "cells", None, "Globs of the cells to train and report, separated by commas; default: all."
)
LOSSES = flags.DEFINE_string(
    "losses", None, "Those of the config's losses to train, separated by commas; default: all."
)
LIST = flags.DEFINE_bool(
    "list", False, "Print the cells, how long they take and which are done, and end."
)
MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the tables as Markdown.")


def main(_):
    config = cli.load_config(CONFIG)
    root, typed = files.path_of(WORKDIR.value), cli.overrides(CONFIG)
    plan = sweep_plan.read(config, root, typed=typed, losses=LOSSES.value)
    selected = plan.cells
    if CELLS.value is not None:
        selected = cells.select(plan.cells, CELLS.value or [""], "--cells")
    if LIST.value:
        study.check(plan)
        _list(plan, selected)
        return 0
    if watch_flags.PROFILE.value is not None:
        raise ValueError(
            "--profile: a sweep is many trainings; profile one of them by experiments.distill"
        )
    # Raises early if this machine lacks the devices.
    sharding.make_mesh(RunSpec.from_config(plan.config))
    monitoring = loop.Monitoring(trackers=watch_flags.trackers())
    with lock.hold(root):
        study.initialize_or_resume(plan)
        study.run(plan, selected, monitoring)
        if processes.is_first():
            _report(plan, selected)
    return 0


def _list(plan: sweep_plan.SweepPlan, selected: tuple[cells.Cell, ...]) -> None:
    total = 0.0
    for cell in selected:
        run, state = plan.cell_run(cell).spec(), "done"
        if not study.is_done(plan, cell):
            minutes = time_estimate.cell_seconds(run, decoded=cell in plan.decoded) / 60
            total, state = total + minutes, f"about {minutes:.0f} min"
        students, tokens = len(run.losses) * len(run.seeds), time_estimate.training_tokens(run)
        suffix = ", decoded" * (cell in plan.decoded)
        print(f"{cell.name}: {students} students of {tokens:,} tokens{suffix}, {state}")
    share = f"{len(selected)} of {len(plan.cells)} cells"
    print(f"{share}, about {total:.0f} min to go on 2 CPU cores, without teachers and tuning")


def _report(plan: sweep_plan.SweepPlan, selected: tuple[cells.Cell, ...]) -> None:
    """Reports cells that are done, by this command or earlier ones."""
    measured, rates, entropies = {}, {}, {}
    for cell in selected:
        workdir = plan.workdir("cells", cell.name)
        measured[cell] = stored_sums.read(workdir.root / stored_sums.FILE)
        optimizers = workdir.spec().student_stage.optimizers
        for loss, optimizer in zip(plan.losses, optimizers, strict=True):
            rates[cell, loss] = optimizer.learning_rate
        facts = plan.workdir("teachers", cell.teacher).facts()
        if runs.ENTROPY in facts:
            entropies[cell.teacher] = facts[runs.ENTROPY]
    frame, ranks = comparisons.table(measured, rates), ranking.table(measured.values())
    results = report.SweepResults(plan, frame, ranks, claims.table(measured), entropies)
    report.write(plan.root, results)
    if MARKDOWN.value:
        print(report.markdown(results), end="")
    else:
        tables = (table.terminal() for table in report.tables(results))
        parts = (*tables, report.finding(results), "", report.notes(results))
        cli.console(150).print(*parts, sep="\n", markup=False)
    cli.log(f"\nEverything lies in {plan.root}: {', '.join(report.FILES)} and pictures")


if __name__ == "__main__":
    cli.run(main, resumes=True)
