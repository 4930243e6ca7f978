"""Which loss should a draft be trained with? Losses by student, teacher, training context and
temperature.

  python -m experiments.sweep --config=configs/choose.py --workdir=runs/choose

Each cell is a run as `experiments.distill` makes it, in WORKDIR/cells/NAME, on a teacher of
WORKDIR/teachers, its learning rates tuned for each loss in WORKDIR/tuning; every tool works on
these folders. The same command goes on where an earlier one stopped, and leaves finished cells
alone. Cut it to a part, of which the tables then are:

  --cells='adapter1-*,decoder1-sharp-corpus-T1' --losses=kl,tv,jsd --list

`--config=configs/choose.py:quick` is a first look. choose.csv and ranks.csv hold what was found,
claims.csv what others report beside it.
"""

from experiments.common import startup

startup.begin(__name__)

import dataclasses

from absl import flags

from experiments.common import cli, watch_flags
from experiments.sweep import (
    claims,
    comparing,
    grid,
    pace,
    pictures,
    plan,
    ranking,
    report,
    study,
    sums,
    teachers,
)
from jaxdiv import files, schema
from jaxdiv.runs import config as run_config
from jaxdiv.runs import lock, processes, sharding
from jaxdiv.training import loop

CONFIG = cli.define_config()
cli.define_log_format()
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/choose", "The sweep's folder; it may be gs://BUCKET/FOLDER."
)
CELLS = flags.DEFINE_list(
    "cells", None, "Globs of the cells to train and tell of, by commas; all if not given."
)
LOSSES = flags.DEFINE_string(
    "losses", None, "Those of the config's losses to train, by commas; all if not given."
)
LIST = flags.DEFINE_bool(
    "list", False, "Print the cells, what they take and which are done, and end."
)
MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the tables as Markdown.")


def main(_):
    config = cli.load_config(CONFIG)
    made = plan.read(
        config, files.path_of(WORKDIR.value), typed=cli.overrides(CONFIG), losses=LOSSES.value
    )
    cells = (
        made.cells if CELLS.value is None else grid.cut(made.cells, CELLS.value or [""], "--cells")
    )
    if LIST.value:
        study.check(made)
        _list(made, cells)
        return 0
    if watch_flags.PROFILE.value is not None:
        raise ValueError(
            "--profile: a sweep is many trainings; profile one of them by experiments.distill"
        )
    sharding.make(made.config)  # which refuses what this machine has not
    also = watch_flags.trackers()
    with lock.hold(made.root):
        study.initialize_or_resume(made)
        try:
            study.run(made, cells, also=also)
        except loop.Stopped as stopped:
            cli.log(f"{stopped}; the same command goes on from there")
            return 128 + stopped.signum
        if processes.is_first():
            _report(made, cells)
    return 0


def _list(made, cells):
    decoded = grid.decoded(made.sweep, made.cells)
    students, total = len(made.losses) * made.config["seeds"], 0.0
    for cell in cells:
        done = study.is_done(made, cell)
        minutes = 0.0 if done else pace.seconds(made, cell, decoded=cell in decoded) / 60
        total += minutes
        tokens = pace.tokens(made.cell_config(cell, dict.fromkeys(made.losses, 1.0)))
        state = "done" if done else f"about {minutes:.0f} min"
        print(
            f"{cell.name}: {students} students of {tokens:,} tokens{', decoded' * (cell in decoded)}, {state}"
        )
    share = f"{len(cells)} of {len(made.cells)} cells"
    print(f"{share}, about {total:.0f} min to go on 2 CPU cores, without teachers and tuning")


def _report(made, cells):
    """Of cells that are done, by this command or earlier ones."""
    measured = {cell.name: sums.read(made.cell_run(cell).root / sums.FILE) for cell in cells}
    used = {cell.teacher: made.teacher_run(cell.teacher).facts() for cell in cells}
    found = report.make(
        comparing.rows(measured, _told(made, cells)),
        [row for key in _keys(measured) for row in ranking.rows(measured, key)],
        claims.rows({cell: measured[cell.name] for cell in cells}),
        losses=made.losses,
        seeds=made.config["seeds"],
        rates=made.sweep["rates"],
        base=_factors(made.cells[0]),
        entropies={
            name: facts[teachers.ENTROPY]
            for name, facts in used.items()
            if teachers.ENTROPY in facts
        },
        part=_part(made, cells),
    )
    report.write(made.root, found)
    if MARKDOWN.value:
        print(report.markdown(found), end="")
    else:
        cli.console(150).print(
            *report.rich_tables(found),
            report.finding(found),
            "",
            report.notes(found),
            sep="\n",
            markup=False,
        )
    cli.log(f"\nEverything lies in {made.root}: {', '.join(report.FILES)} and pictures")


def _keys(measured):
    return dict.fromkeys(key for one in measured.values() for _, key in one.sums)


def _factors(cell):
    return dict(zip(pictures.FACTORS, dataclasses.astuple(cell), strict=True))


def _told(made, cells):
    """(cell's name, loss) to what choose.csv says of both beside their measures."""
    told = {}
    for cell in cells:
        rates = run_config.learning_rates(made.cell_run(cell).config())
        told |= {
            (cell.name, loss): {**_factors(cell), "learning_rate": rate}
            for loss, rate in zip(made.losses, rates, strict=True)
        }
        told[cell.name, schema.UNTRAINED] = _factors(cell)
    return told


def _part(made, cells):
    """In words, what of the study is there; empty if all."""
    parts = [(len(cells), len(made.cells), "cells"), (len(made.losses), made.offered, "losses")]
    return ", ".join(f"{some} of {every} {what}" for some, every, what in parts if some < every)


if __name__ == "__main__":
    cli.run(main, resumes=True)
