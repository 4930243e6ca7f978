r"""Shows what each class adds to a loss and to its gradient.

  python -m experiments.contributions --p=.98,.01,.01 --q=.979,.02,.001 --output=runs/contributions
  python -m experiments.contributions --workdir=runs/quickstart
  python -m experiments.contributions --workdir=runs/quickstart \
    --losses=kl,rkl,skl --student=untrained

For two distributions it splits each loss by class. The shares of a loss as written depend on
convention; those of its gradient by the student's logits do not. For a finished run it averages
over held-out documents: which classes does each loss look at, by the rank that the teacher gives
them?
"""

from experiments.common import startup

startup.begin(__name__)

import functools
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from absl import flags
from matplotlib.figure import Figure

import jaxdiv
from experiments.common import cli, study_report
from experiments.contributions import by_class, by_rank
from jaxdiv import files, schema
from jaxdiv.evaluation import contributions_by_rank
from jaxdiv.reporting.style import LIGHT
from jaxdiv.reporting.tables import Table
from jaxdiv.runs.workdir import Workdir

P = flags.DEFINE_string(
    "p", None, "The teacher's distribution: comma-separated probabilities that sum to 1."
)
Q = flags.DEFINE_string("q", None, "The student's distribution, over the same classes.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of a finished run, in place of --p and --q."
)
LOSSES = flags.DEFINE_string(
    "losses", None, "Losses, separated by commas; by default ce,kl, or those of the run."
)
STUDENT = flags.DEFINE_string(
    "student",
    None,
    "The students that all losses are computed on: those of a loss of the run, untrained, or "
    f"{contributions_by_rank.OWN} for each loss on its own; ce, or else the run's first, if not "
    "given.",
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where the CSV and the picture go; of a run its folder if not given."
)
TOLERANCE = 1e-3  # of a distribution's sum, as its digits are rounded


def distribution(name: str, text: str | None) -> np.ndarray:
    """Returns the probabilities [V] that a flag lists.

    Raises:
      ValueError: they are no numbers, negative, or do not sum to 1.
    """
    if not text:
        raise ValueError(f"`--{name}` must list probabilities, such as --{name}=.98,.01,.01.")
    try:
        values = np.array([float(number) for number in text.split(",")])
    except ValueError:
        raise ValueError(f"`--{name}` must list numbers separated by commas, got {text}.") from None
    if not np.all(values >= 0):
        raise ValueError(f"`--{name}` must have no negative or missing probability, got {text}.")
    if not math.isclose(values.sum(), 1, abs_tol=TOLERANCE):
        raise ValueError(f"`--{name}` must sum to 1, got {text} with sum {values.sum():g}.")
    return values


def main(_):
    if WORKDIR.value and (P.value or Q.value):
        raise ValueError("give --p and --q, or --workdir, not both")
    if WORKDIR.value:
        _show_run(Workdir(WORKDIR.value))
    elif P.value or Q.value:
        _show_distributions()
    else:
        raise ValueError(
            "give two distributions, such as --p=.98,.01,.01 --q=.979,.02,.001, or a run, "
            "--workdir=runs/quickstart"
        )
    return 0


def _show_distributions() -> None:
    if STUDENT.value:
        raise ValueError("--student is of a run; give --workdir")
    p, q = distribution("p", P.value), distribution("q", Q.value)
    if len(p) != len(q):
        raise ValueError(f"`--p` and `--q` must have as many classes, got {len(p)} and {len(q)}.")
    losses = jaxdiv.split("ce,kl" if LOSSES.value is None else LOSSES.value)
    for loss in losses:
        if jaxdiv.get(loss).needs_labels:
            raise ValueError(f"`{loss}` is of data labels, which two distributions have none of")
    frame = by_class.split(losses, p, q)
    _print(by_class.tables(frame), by_class.finding(frame))
    if OUTPUT.value:
        draw = functools.partial(by_class.draw, frame)
        _write(files.path_of(OUTPUT.value), "contributions", frame, draw)


def _show_run(run: Workdir) -> None:
    members = run.spec().student_stage.members
    losses = members if LOSSES.value is None else jaxdiv.split(LOSSES.value)
    for loss in losses:
        jaxdiv.get(loss)  # raises for an unknown loss before anything is computed
    student = STUDENT.value or contributions_by_rank.common_student(members)
    measured = contributions_by_rank.measure(run, losses=losses, student=student)
    frame = pd.DataFrame(contributions_by_rank.rows(measured))
    _print(by_rank.tables(frame), by_rank.finding(frame))
    students = {
        contributions_by_rank.OWN: "each loss on its own students",
        schema.UNTRAINED: "all losses on untrained students",
    }.get(student, f"all losses on the students of {student}")
    positions = measured.positions
    subtitle = (
        f"Mean share over the {positions.sum():,.0f} positions of {len(positions)} held-out "
        f"documents; {students}. ±: 95% interval."
    )
    draw = functools.partial(by_rank.draw, frame, subtitle=subtitle)
    _write(files.path_of(OUTPUT.value or run.root), "contributions_by_rank", frame, draw)


def _print(tables: Sequence[Table], finding: str) -> None:
    for table in tables:
        cli.console(110).print(table.terminal())
    print(finding)


def _write(
    folder: pathlib.PurePath, name: str, frame: pd.DataFrame, draw: Callable[[], Figure]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    study_report.write(folder, {f"{name}.csv": frame}, {name: lambda _: draw()}, {"": LIGHT})
    cli.log(f"\nWritten to {folder}: open {folder / f'{name}.png'}")


if __name__ == "__main__":
    cli.run(main)
