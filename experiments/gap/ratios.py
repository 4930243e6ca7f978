"""Acceptance of either loss's students under each cause, and KL over cross-entropy."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.gap import formulas
from experiments.gap.causes import BASELINE, Cause
from experiments.gap.measuring import Measure, SumsByMeasure
from experiments.gap.variants import Variant, variant_name
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Sums
from jaxdiv.schema import UNTRAINED

BOTH = "both"
ACCEPTANCE: Measure = ("acceptance", 1.0)
# A student that learnt anything is accepted more often than the untrained by one of these.
_SHOWS_TRAINING: tuple[Measure, ...] = (ACCEPTANCE, ("greedy_match", 0.0))
SumsByVariant = Mapping[str, SumsByMeasure]


def rows(causes: Sequence[Cause], sums: SumsByVariant) -> list[dict]:
    """Returns the rows of gap.csv: each cause applied to both losses, to `ce` alone and to `kl`
    alone.

    Raises:
      ValueError: all baseline students of a loss diverged.
    """
    for loss in formulas.LOSSES:
        if not sums[variant_name(BASELINE, loss)]:
            raise ValueError(
                f"all baseline students of {loss} turned non-finite: there is nothing to compare "
                "with; lower `config.student.optimizer.learning_rate`"
            )
    table = []
    for cause in causes:
        # A cause in measuring alone, applied to both losses, is a row of the baseline.
        sides = () if cause.training == BASELINE and cause.text != BASELINE else (BOTH,)
        sides += () if cause.text == BASELINE else formulas.LOSSES
        for applied_to in sides:
            by_loss = [cause if applied_to in (BOTH, loss) else None for loss in formulas.LOSSES]
            start = {"cause": cause.text, "applied_to": applied_to}
            table += [start | row for row in _ratio_rows(by_loss, sums)]
    return table


def _ratio_rows(by_loss: Sequence[Cause | None], sums: SumsByVariant) -> list[dict]:
    """Returns a row a measure, in which each loss has its cause or none."""
    names = [
        variant_name(cause.training if cause else BASELINE, loss)
        for cause, loss in zip(by_loss, formulas.LOSSES, strict=True)
    ]
    trained = [
        loss
        for name, loss in zip(names, formulas.LOSSES, strict=True)
        if _is_trained(sums[name], sums[UNTRAINED])
    ]
    trained = BOTH if len(trained) == 2 else "".join(trained) or "neither"
    table = []
    for measure in sums[variant_name(BASELINE, formulas.CE)]:
        measures = [_replace_measure(measure, cause) for cause in by_loss]
        if None not in measures:
            ce, kl = (sums[name].get(key) for name, key in zip(names, measures, strict=True))
            start = {"measure": measure[0], "temperature": measure[1]}
            table.append(start | _compare(ce, kl) | {"trained": trained})
    return table


def _replace_measure(measure: Measure, cause: Cause | None) -> Measure | None:
    """Returns the measure that stands in the place of `measure` under the cause; None if the cause
    doesn't apply to it.

    A cause in measuring applies to acceptance alone, at any temperature that it leaves open.
    """
    if cause is None or not cause.measuring:
        return measure
    if measure[0] != "acceptance" or ("temperature" in cause.measuring and measure != ACCEPTANCE):
        return None
    name, temperature = measure
    return cause.measuring.get("measure", name), cause.measuring.get("temperature", temperature)


def _compare(ce: Sums | None, kl: Sums | None) -> dict[str, float]:
    """Returns means over the seeds that both losses have, their ratio and its interval; the mean of
    one loss if the other has no student left."""
    none = np.zeros(0, bool)
    finite = [none if sums is None else _finite(sums) for sums in (ce, kl)]
    if ce is not None and kl is not None and (both := finite[0] & finite[1]).any():
        ratio = statistics.paired_log_ratio(*_sides(kl, both), *_sides(ce, both))
        ends = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
        finite, ends = [both, both], {name: math.exp(end) for name, end in ends.items()}
    else:
        ends = dict.fromkeys(("ratio", "low", "high"), math.nan)
    values = [
        statistics.interval(*_sides(sums, seeds)).value if seeds.any() else math.nan
        for sums, seeds in zip((ce, kl), finite, strict=True)
    ]
    return dict(zip(formulas.LOSSES, values, strict=True)) | ends


def acceptance(variants: Sequence[Variant], sums: SumsByVariant) -> list[dict]:
    """Returns the rows of acceptance.csv: every variant's acceptance over its finite students, with
    95% intervals."""
    table = []
    for variant in variants:
        for (measure, temperature), part in sums[variant.name].items():
            estimate = statistics.interval(*_sides(part, _finite(part)), bounds=(0, math.inf))
            table.append(
                {
                    "training": variant.training,
                    "loss": variant.loss,
                    "measure": measure,
                    "temperature": temperature,
                    "value": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                }
            )
    return table


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
