"""Of each cause and measure, how often either loss's students were accepted, and KL over
cross-entropy."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.gap import arms, formulas
from experiments.gap.causes import BASELINE, Cause
from experiments.gap.measuring import Cell
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Sums
from jaxdiv.schema import UNTRAINED

BOTH = "both"
ACCEPTANCE: Cell = ("acceptance", 1.0)
_LEARNT: tuple[Cell, ...] = (
    ACCEPTANCE,
    ("greedy_match", 0.0),
)  # a student that learnt something shows it in one
Found = Mapping[str, Mapping[Cell, Sums]]


def rows(causes: Sequence[Cause], found: Found) -> list[dict]:
    """The rows of gap.csv, of each cause applied to both losses, to `ce` alone and to `kl` alone.

    Raises:
      ValueError: no student of the baseline is left to compare with.
    """
    for loss in formulas.LOSSES:
        if not found[arms.name(BASELINE, loss)]:
            raise ValueError(
                f"all baseline students of {loss} turned non-finite: there is nothing to compare with; lower "
                f"`config.student.optimizer.learning_rate`"
            )
    made = []
    for cause in causes:
        for applied_to in _applications(cause):
            sides = [cause if applied_to in (BOTH, loss) else None for loss in formulas.LOSSES]
            made += _of(cause.text, applied_to, sides, found)
    return made


def acceptance(trained: Sequence[arms.Arm], found: Found) -> list[dict]:
    """The rows of acceptance.csv: every arm's acceptance, of the students that are left, with 95%
    intervals."""
    return [row for arm in trained for row in _accepted(arm.training, arm.loss, found[arm.text])]


def _accepted(training, loss, cells):
    for (measure, temperature), sums in cells.items():
        found = statistics.interval(*_sides(sums, _finite(sums)), bounds=(0, math.inf))
        value = {"value": found.value, "low": found.low, "high": found.high}
        yield {
            "training": training,
            "loss": loss,
            "measure": measure,
            "temperature": temperature,
            **value,
        }


def _applications(cause):
    """What is only measured otherwise is the baseline's own row, where it is so for both."""
    if cause.text == BASELINE:
        return (BOTH,)
    return formulas.LOSSES if cause.training == BASELINE else (BOTH, *formulas.LOSSES)


def _of(text, applied_to, sides, found):
    training = [side.training if side else BASELINE for side in sides]
    names = [arms.name(*pair) for pair in zip(training, formulas.LOSSES, strict=True)]
    trained = _told([_learnt(found[name], found[UNTRAINED]) for name in names])
    for cell in found[arms.name(BASELINE, formulas.CE)]:
        cells = [_moved(cell, side) for side in sides]
        # What a cause says of the measure holds for the rows of acceptance alone, at any
        # temperature it leaves open.
        if None in cells:
            continue
        pair = [found[name].get(own) for name, own in zip(names, cells, strict=True)]
        yield {
            "cause": text,
            "applied_to": applied_to,
            "measure": cell[0],
            "temperature": cell[1],
            **_compared(*pair),
            "trained": trained,
        }


def _moved(cell, cause):
    """Where a loss's students are measured in place of `cell`; None if the cause does not apply to
    it."""
    if cause is None or not cause.measuring:
        return cell
    if cell[0] != "acceptance" or ("temperature" in cause.measuring and cell != ACCEPTANCE):
        return None
    return cause.measuring.get("measure", cell[0]), cause.measuring.get("temperature", cell[1])


def _compared(ce, kl):
    """Means over the seeds that both have, their ratio and its interval; of one alone its mean."""
    if ce is None or kl is None or not (both := _finite(ce) & _finite(kl)).any():
        return {
            "ce": _value(ce),
            "kl": _value(kl),
            "ratio": math.nan,
            "low": math.nan,
            "high": math.nan,
        }
    found = statistics.paired_log_ratio(*_sides(kl, both), *_sides(ce, both))
    ratio = {"ratio": found.value, "low": found.low, "high": found.high}
    values = {
        loss: statistics.interval(*_sides(sums, both)).value
        for loss, sums in (("ce", ce), ("kl", kl))
    }
    return values | {name: math.exp(value) for name, value in ratio.items()}


def _value(sums):
    if sums is None or not (finite := _finite(sums)).any():
        return math.nan
    return statistics.interval(*_sides(sums, finite)).value


def _finite(sums):
    return np.isfinite(sums.numerator).all(axis=1)


def _sides(sums, kept):
    return sums.numerator[kept], sums.denominator[kept]


def _learnt(cells, untrained):
    """Whether all students are left and accepted more often than the untrained, beyond intervals of
    95% in all."""
    level = 1 - 0.05 / len(_LEARNT)
    return any(_is_above(cells[cell], untrained[cell], level) for cell in _LEARNT if cell in cells)


def _is_above(ours, theirs, level):
    kept = _finite(ours)
    return (
        bool(kept.all())
        and statistics.paired_difference(
            *_sides(ours, kept), *_sides(theirs, kept), level=level
        ).low
        > 0
    )


def _told(learnt):
    names = [loss for loss, has in zip(formulas.LOSSES, learnt, strict=True) if has]
    return BOTH if len(names) == 2 else "".join(names) or "neither"
