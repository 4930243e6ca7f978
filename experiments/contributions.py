"""What each class adds to a loss and to its gradient: for two given distributions, or in a finished
run by rank.

  python -m experiments.contributions --p=.98,.01,.01 --q=.979,.02,.001 --output=runs/contributions
  python -m experiments.contributions --workdir=runs/quickstart
  python -m experiments.contributions --workdir=runs/quickstart --losses=kl,rkl,skl
  --student=untrained

Of distributions, shares of the losses as written differ by convention; what the student's logits
feel does not. Of a run's held-out documents: which classes does each loss look at, by the rank that
the teacher gives them?
"""

from experiments.common import startup

startup.begin(__name__)

import math

import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import flags

import jaxdiv
from experiments.common import cli
from jaxdiv import files, schema
from jaxdiv.contributions import contributions, gauges, shares
from jaxdiv.evaluation import contributions_by_rank
from jaxdiv.reporting import class_contributions, rank_contributions
from jaxdiv.runs import config as run_config
from jaxdiv.runs.workdir import Workdir

P = flags.DEFINE_string(
    "p", None, "The teacher's distribution: comma-separated probabilities that sum to 1."
)
Q = flags.DEFINE_string("q", None, "The student's distribution, over the same classes.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of a finished run, in place of --p and --q."
)
LOSSES = flags.DEFINE_string(
    "losses", None, "Losses, by commas; ce,kl of distributions, of a run its own if not given."
)
STUDENT = flags.DEFINE_string(
    "student",
    None,
    f"Whose students all losses are seen on: a loss of the run, untrained, or {contributions_by_rank.OWN} for each loss on its own; "
    "ce, or else the run's first, if not given.",
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where the CSV and the picture go; of a run its folder if not given."
)
_SEEN_ON = {
    contributions_by_rank.OWN: "each loss on its own students",
    schema.UNTRAINED: "all losses on untrained students",
}
TOLERANCE = 1e-3  # of a distribution's sum, as its digits are rounded


def distribution(name: str, text: str | None) -> np.ndarray:
    """The probabilities [V] that `text` lists.

    Raises:
      ValueError: if they are no numbers, negative, or do not sum to 1.
    """
    if not text:
        raise ValueError(f"`--{name}` must list probabilities, such as --{name}=.98,.01,.01.")
    try:
        values = np.array([float(piece) for piece in text.split(",")])
    except ValueError:
        raise ValueError(f"`--{name}` must list numbers by commas, got {text}.") from None
    if not np.all(values >= 0):
        raise ValueError(f"`--{name}` must have no negative or missing probability, got {text}.")
    if not math.isclose(values.sum(), 1, abs_tol=TOLERANCE):
        raise ValueError(f"`--{name}` must sum to 1, got {text} with sum {values.sum():g}.")
    return values


def split(losses: tuple[str, ...], p: np.ndarray, q: np.ndarray) -> pd.DataFrame:
    """Parts and shares of each loss in every gauge it has; columns `class_contributions.COLUMNS`."""
    with np.errstate(divide="ignore"):
        teacher_logits, student_logits = jnp.log(p), jnp.log(q)
    rows = []
    for loss in losses:
        for gauge in gauges(loss):
            parts = contributions(loss, student_logits, teacher_logits, gauge=gauge)
            numbers = zip(
                p, q, np.asarray(parts, float), np.asarray(shares(parts), float), strict=True
            )
            rows += [(loss, gauge, i, *row) for i, row in enumerate(numbers)]
    return pd.DataFrame(rows, columns=list(class_contributions.COLUMNS))


def main(_):
    if WORKDIR.value and (P.value or Q.value):
        raise ValueError("give --p and --q, or --workdir, not both")
    if WORKDIR.value:
        _of_run(Workdir(WORKDIR.value))
    elif P.value or Q.value:
        _of_distributions()
    else:
        raise ValueError(
            "give two distributions, such as --p=.98,.01,.01 --q=.979,.02,.001, or a run, --workdir=runs/quickstart"
        )
    return 0


def _of_distributions():
    if STUDENT.value:
        raise ValueError("--student is of a run; give --workdir")
    p, q = distribution("p", P.value), distribution("q", Q.value)
    if len(p) != len(q):
        raise ValueError(f"`--p` and `--q` must have as many classes, got {len(p)} and {len(q)}.")
    losses = jaxdiv.split("ce,kl" if LOSSES.value is None else LOSSES.value)
    for loss in losses:
        if jaxdiv.get(loss).needs_labels:
            raise ValueError(f"`{loss}` is of data labels, which two distributions have none of")
    frame = split(losses, p, q)
    for made in class_contributions.tables(frame):
        _print(made)
    print(class_contributions.finding(frame))
    if OUTPUT.value:
        _write(
            files.path_of(OUTPUT.value), "contributions", frame, class_contributions.render(frame)
        )


def _of_run(run):
    config = run.config()
    own = [loss.text for loss in run_config.losses(config)]
    losses = own if LOSSES.value is None else jaxdiv.split(LOSSES.value)
    for loss in losses:
        jaxdiv.get(loss)
    student = STUDENT.value or contributions_by_rank.common_student(config)
    measured = contributions_by_rank.measure(run, losses=losses, student=student)
    frame = pd.DataFrame(
        contributions_by_rank.rows(measured), columns=list(rank_contributions.COLUMNS)
    )
    for made in rank_contributions.tables(frame):
        _print(made)
    print(rank_contributions.finding(frame))
    positions = measured.positions
    subtitle = (
        f"Mean share over the {positions.sum():,.0f} positions of {len(positions)} held-out documents; "
        f"{_SEEN_ON.get(student, f'all losses on the students of {student}')}. ±: 95% interval."
    )
    _write(
        files.path_of(OUTPUT.value or run.root),
        "contributions_by_rank",
        frame,
        rank_contributions.render(frame, subtitle=subtitle),
    )


def _print(table):
    cli.console(110).print(table)


def _write(folder, name, frame, picture):
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    with files.replacing(folder / f"{name}.png") as temporary:
        temporary.write_bytes(picture)
    cli.log(f"\nWritten to {folder}: open {folder / f'{name}.png'}")


if __name__ == "__main__":
    cli.run(main)
