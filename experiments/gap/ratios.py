"""Acceptance of either loss's students under each cause, and KL over cross-entropy."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.gap import formulas
from experiments.gap.causes import BASELINE, Cause
from experiments.gap.measuring import Measure, SumsByMeasure
from experiments.gap.variants import Variant, variant_name
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Sums
from jaxdiv.schema import UNTRAINED

COLUMNS = (
    "cause", "applied_to", "measure", "temperature", "ce", "kl", "ratio", "low", "high", "trained",
)  # fmt: skip
ACCEPTANCE_COLUMNS = ("training", "loss", "measure", "temperature", "value", "low", "high")
BOTH = "both"
ACCEPTANCE: Measure = ("acceptance", 1.0)
# A student that learnt anything is accepted more often than the untrained by one of these.
_SHOWS_TRAINING: tuple[Measure, ...] = (ACCEPTANCE, ("greedy_match", 0.0))
SumsByVariant = Mapping[str, SumsByMeasure]


def table(causes: Sequence[Cause], sums: SumsByVariant) -> pd.DataFrame:
    """Returns gap.csv: each cause applied to both losses, to `ce` alone and to `kl` alone.

    Raises:
      ValueError: all baseline students of a loss diverged.
    """
    for loss in formulas.LOSSES:
        if not sums[variant_name(BASELINE, loss)]:
            raise ValueError(
                f"all baseline students of {loss} turned non-finite: there is nothing to compare "
                "with; lower `config.student.optimizer.learning_rate`"
            )
    rows = []
    for cause in causes:
        # A cause in measuring alone, applied to both losses, is a row of the baseline.
        sides = () if cause.training == BASELINE and cause.text != BASELINE else (BOTH,)
        sides += () if cause.text == BASELINE else formulas.LOSSES
        for side in sides:
            by_loss = [cause if side in (BOTH, loss) else None for loss in formulas.LOSSES]
            rows += [(cause.text, side, *row) for row in _ratio_rows(by_loss, sums)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _ratio_rows(by_loss: Sequence[Cause | None], sums: SumsByVariant) -> list[tuple]:
    """Returns a row a measure, where each loss has its cause or none."""
    names, trained, rows = [], [], []
    for cause, loss in zip(by_loss, formulas.LOSSES, strict=True):
        names.append(variant_name(cause.training if cause else BASELINE, loss))
        if _is_trained(sums[names[-1]], sums[UNTRAINED]):
            trained.append(loss)
    trained = BOTH if len(trained) == 2 else "".join(trained) or "neither"
    for measure in sums[variant_name(BASELINE, formulas.CE)]:
        measures = [_replace_measure(measure, cause) for cause in by_loss]
        if None not in measures:
            pair = [sums[name].get(key) for name, key in zip(names, measures, strict=True)]
            rows.append((*measure, *_compare(*pair), trained))
    return rows


def _replace_measure(measure: Measure, cause: Cause | None) -> Measure | None:
    """Returns the measure that replaces `measure` under the cause; None if it doesn't apply there.

    A cause in measuring applies to acceptance alone, at any temperature that it leaves open.
    """
    if cause is None or not cause.measuring:
        return measure
    if measure[0] != "acceptance" or ("temperature" in cause.measuring and measure != ACCEPTANCE):
        return None
    name, temperature = measure
    return cause.measuring.get("measure", name), cause.measuring.get("temperature", temperature)


def _compare(ce: Sums | None, kl: Sums | None) -> tuple[float, ...]:
    """Returns (CE's mean, KL's mean, ratio, its low and high end) over the seeds that both losses
    have; the mean alone of one loss if the other has no student left."""
    none = np.zeros(0, bool)
    finite = [none if sums is None else _finite(sums) for sums in (ce, kl)]
    ends = (math.nan, math.nan, math.nan)
    if ce is not None and kl is not None and (both := finite[0] & finite[1]).any():
        finite = [both, both]
        ratio = statistics.paired_log_ratio(*_sides(kl, both), *_sides(ce, both))
        ends = (math.exp(ratio.value), math.exp(ratio.low), math.exp(ratio.high))
    means = [
        statistics.interval(*_sides(sums, seeds)).value if seeds.any() else math.nan
        for sums, seeds in zip((ce, kl), finite, strict=True)
    ]
    return (*means, *ends)


def acceptance_table(variants: Sequence[Variant], sums: SumsByVariant) -> pd.DataFrame:
    """Returns acceptance.csv: every variant's acceptance over its finite students, with 95%
    intervals."""
    rows = []
    for variant in variants:
        for measure, part in sums[variant.name].items():
            value = statistics.interval(*_sides(part, _finite(part)), bounds=(0, math.inf))
            ends = (value.value, value.low, value.high)
            rows.append((variant.training, variant.loss, *measure, *ends))
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
