"""Acceptance of either loss's students under each cause, and KL over cross-entropy."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.gap.causes import BASELINE, Cause
from experiments.gap.formulas import CE, KL, LOSSES
from experiments.gap.measuring import Measure, SumsByMeasure
from jaxdiv import schema, statistics
from jaxdiv.evaluation.measurement import Sums

COLUMNS = (
    "cause", "applied_to", "measure", "temperature", "ce", "kl", "ratio", "low", "high", "trained",
)  # fmt: skip
ACCEPTANCE_COLUMNS = ("training", "loss", "measure", "temperature", "value", "low", "high")
BOTH = "both"
ACCEPTANCE: Measure = (schema.ACCEPTANCE, 1.0)
# By whether CE's and KL's students are trained.
_TRAINED = {(True, True): BOTH, (True, False): CE, (False, True): KL, (False, False): "neither"}
# A student that learnt anything is accepted more often than the untrained by one of these.
_SHOWS_TRAINING: tuple[Measure, ...] = (ACCEPTANCE, (schema.GREEDY_MATCH, 0.0))


def table(causes: Sequence[Cause], sums: Mapping[str, SumsByMeasure]) -> pd.DataFrame:
    """Returns gap.csv: each cause applied to both losses, to `ce` alone and to `kl` alone.

    Args:
      causes: the baseline first.
      sums: those of each variant and of the untrained students, by name.

    Raises:
      ValueError: all baseline students of a loss diverged.
    """
    baseline, rows = causes[0], []
    for loss in LOSSES:
        if not sums[baseline.variant(loss)]:
            raise ValueError(
                f"all baseline students of {loss} turned non-finite: there is nothing to compare "
                "with; lower `config.student.optimizer.learning_rate`"
            )
    for cause in causes:
        # A cause in measuring alone, applied to both losses, is a row of the baseline.
        sides = () if cause.training == BASELINE and cause is not baseline else (BOTH,)
        sides += () if cause is baseline else LOSSES
        for side in sides:
            applied = [cause if side in (BOTH, loss) else baseline for loss in LOSSES]
            pair = [sums[of.variant(loss)] for of, loss in zip(applied, LOSSES, strict=True)]
            trained = [_is_trained(part, sums[schema.UNTRAINED]) for part in pair]
            trained = (
                BOTH if all(trained) else CE if trained[0] else KL if trained[1] else "neither"
            )
            for measure in sums[baseline.variant(CE)]:
                measures = [_replace_measure(measure, of) for of in applied]
                if None not in measures:
                    values = _compare(*map(dict.get, pair, measures))
                    rows.append((cause.text, side, *measure, *values, trained))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _replace_measure(measure: Measure, cause: Cause) -> Measure | None:
    """Returns the measure that replaces `measure` under the cause; None if it doesn't apply there.

    A cause in measuring applies to acceptance alone, at any temperature that it leaves open.
    """
    if not cause.measuring:
        return measure
    name, temperature = measure
    if name != ACCEPTANCE[0] or ("temperature" in cause.measuring and measure != ACCEPTANCE):
        return None
    return cause.measuring.get("measure", name), cause.measuring.get("temperature", temperature)


def _compare(ce: Sums | None, kl: Sums | None) -> tuple[float, ...]:
    """Returns (CE's mean, KL's mean, ratio, its low and high end) over the seeds that both losses
    have; the mean alone of one loss if the other has no student left."""
    finite = [np.zeros(1, bool) if sums is None else _finite(sums) for sums in (ce, kl)]
    ends = (math.nan, math.nan, math.nan)
    if (both := finite[0] & finite[1]).any():
        finite = [both, both]
        ratio = statistics.paired_log_ratio(*_sides(kl, both), *_sides(ce, both))
        ends = (math.exp(ratio.value), math.exp(ratio.low), math.exp(ratio.high))
    means = [
        statistics.interval(*_sides(sums, seeds)).value if seeds.any() else math.nan
        for sums, seeds in zip((ce, kl), finite, strict=True)
    ]
    return (*means, *ends)


def acceptance_table(variants: Iterable[str], sums: Mapping[str, SumsByMeasure]) -> pd.DataFrame:
    """Returns acceptance.csv: every variant's acceptance over its finite students, with 95%
    intervals."""
    rows = []
    for name in variants:
        training, _, loss = name.rpartition(":")
        for measure, part in sums[name].items():
            value = statistics.interval(*_sides(part, _finite(part)), bounds=(0, math.inf))
            rows.append((training, loss, *measure, value.value, value.low, value.high))
    return pd.DataFrame(rows, columns=list(ACCEPTANCE_COLUMNS))


def _finite(sums):
    """Returns which seeds' students are finite, bool [S]."""
    return np.isfinite(sums.numerator).all(axis=1)


def _sides(sums, seeds):
    return sums.numerator[seeds], sums.denominator[seeds]


def _is_trained(sums: SumsByMeasure, untrained: SumsByMeasure) -> bool:
    """Returns whether no student diverged and they are accepted more often than the untrained,
    beyond intervals that hold jointly at 95%."""
    level = 1 - 0.05 / len(_SHOWS_TRAINING)
    for measure in _SHOWS_TRAINING:
        if measure in sums and (finite := _finite(sums[measure])).all():
            sides = (*_sides(sums[measure], finite), *_sides(untrained[measure], finite))
            if statistics.paired_difference(*sides, level=level).low > 0:
                return True
    return False
