"""choose.csv: of each cell, loss and measure the value, and the difference to the reference, which
is paired."""

from collections.abc import Mapping

import numpy as np

from experiments.sweep.plan import REFERENCE
from jaxdiv import schema, statistics
from jaxdiv.evaluation import estimates
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.reporting import verdicts
from jaxdiv.schema import UNTRAINED


def rows(cells: Mapping[str, Measurement], told: Mapping[tuple[str, str], Mapping]) -> list[dict]:
    """The rows of choose.csv.

    Intervals of differences, p-values and verdicts are corrected by Holm over all losses and cells
    of one measure, temperature and gamma: that is the table which somebody reads who looks for the
      best of it.

    Args:
      cells: name to what was measured.
      told: (cell, loss) to the columns that say what they are.
    """
    made = []
    for cell, measured in cells.items():
        made += [
            {
                "cell": cell,
                **told[cell, loss],
                "loss": loss,
                **found,
                **_difference(measured, loss, key),
            }
            for loss, key, found in _values(measured)
        ]
    families = {}
    for row in made:
        if row["estimate"] is not None:
            families.setdefault((row["measure"], row["temperature"], row["gamma"]), []).append(row)
    for family in families.values():
        correct(family)
    for row in made:
        del row["estimate"], row["by_seed"]
    return made


def correct(family: list[dict]) -> None:
    """Puts differences, intervals, p-values and verdicts in rows that have an `estimate` and
    `by_seed`, by Holm."""
    p_values = [row["estimate"].p_value for row in family]
    corrected = zip(
        family, statistics.holm_levels(p_values), statistics.holm(p_values), strict=True
    )
    for row, level, p_value in corrected:
        found = row["estimate"].at_level(level)
        row |= {
            "difference": found.value,
            "difference_low": found.low,
            "difference_high": found.high,
        }
        row |= {
            "p_value": p_value,
            "verdict": verdicts.verdict(found.value, found.low, found.high, row["by_seed"]),
        }


def paired(measured: Measurement, loss: str, key: Key) -> tuple[Sums, Sums] | None:
    """Sums of a loss and of the reference over the seeds that both have; None if there are none."""
    if (loss, key) not in measured.sums or (REFERENCE, key) not in measured.sums:
        return None
    both = [seed for seed in measured.losses[loss] if seed in measured.losses[REFERENCE]]
    return (
        (_only(measured, loss, key, both), _only(measured, REFERENCE, key, both)) if both else None
    )


def _only(measured, loss, key, seeds):
    found, places = measured.sums[loss, key], [measured.losses[loss].index(seed) for seed in seeds]
    return Sums(found.numerator[places], found.denominator[places], found.tokens)


def _values(measured):
    """(loss, key, columns) of every pooled estimate but the differences."""
    for row in estimates.rows([measured]):
        if row["seed"] == schema.POOLED and row["measure"] != "difference":
            key = Key(row["context"], row["measure"], row["temperature"], row["gamma"])
            yield row["loss"], key, {name: row[name] for name in _KEPT}


_KEPT = ("measure", "temperature", "gamma", "value", "low", "high", "n")


def _difference(measured, loss, key):
    nothing = {
        "estimate": None,
        "by_seed": (),
        "verdict": {UNTRAINED: "floor", REFERENCE: "reference"}.get(loss, ""),
    }
    if nothing["verdict"] or (pair := paired(measured, loss, key)) is None:
        return nothing
    ours, theirs = pair
    sides = (ours.numerator, ours.denominator, theirs.numerator, theirs.denominator)
    by_seed = np.subtract(
        *(statistics.ratios(sums.numerator, sums.denominator)[0] for sums in pair)
    )
    return {"estimate": statistics.paired_difference(*sides), "by_seed": by_seed}
