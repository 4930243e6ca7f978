"""claims.csv: what others report of losses and of training contexts, beside what the sweep's cells
show of the same."""

import dataclasses
import math
from collections.abc import Mapping

from experiments.sweep import ranking
from experiments.sweep.grid import Cell
from jaxdiv import statistics
from jaxdiv.evaluation.measurement import Key, Measurement
from jaxdiv.reporting import verdicts
from jaxdiv.schema import GENERATED_TEMPERATURES

_ACCEPTANCE = Key("corpus", "acceptance", 1.0)
_SAMPLED, _GREEDY = (
    Key(context, "tau", t, 8) for context, t in zip(GENERATED_TEMPERATURES, (1.0, 0.0), strict=True)
)
_LK, _DISTILLSPEC, _DISTILLM = (
    "LK losses, 2602.23881",
    "DistillSpec, 2310.08461",
    "DistiLLM, 2402.03898",
)
_LK_SAMPLED = "up to 8–10% more; gpt-oss-120b +7.7%, Llama-3.3-70B +3.6%, 7 drafts"
_LK_GREEDY = "gpt-oss-120b +1.8%, Llama-3.3-70B +0.6%, 7 drafts"
_ON_POLICY = "text of the draft's own is crucial; 10–45% faster than an undistilled draft"
_SKEW = "better than KL and reverse KL, by ROUGE-L"


@dataclasses.dataclass(frozen=True)
class Claim:
    """That `loss`, or what it is trained on, is better than another.

    Attributes:
      source: a paper.
      reported: what it has for it.
      loss: of students that are claimed to be better.
      than: the loss of the others.
      key: where they are compared here.
      context: of training, in which the first are trained and the others in `corpus`; None for any,
        the same for both.
    """

    source: str
    reported: str
    loss: str
    than: str
    key: Key
    context: str | None = None


CLAIMS = (
    Claim(_LK, _LK_SAMPLED, "nla", "kl", _SAMPLED),
    Claim(_LK, _LK_SAMPLED, "lk_hybrid", "kl", _SAMPLED),
    Claim(_LK, _LK_GREEDY, "nla", "kl", _GREEDY),
    Claim(_LK, _LK_GREEDY, "lk_hybrid", "kl", _GREEDY),
    Claim(_DISTILLSPEC, _ON_POLICY, "kl", "kl", _SAMPLED, context="student"),
    Claim(_DISTILLSPEC, _ON_POLICY, "tv", "tv", _SAMPLED, context="student"),
    Claim(_DISTILLSPEC, "text of the target's helps, too", "kl", "kl", _SAMPLED, context="teacher"),
    Claim(_DISTILLM, _SKEW, "skl", "kl", _ACCEPTANCE),
    Claim(_DISTILLM, _SKEW, "skl", "rkl", _ACCEPTANCE),
    Claim(_DISTILLM, _SKEW, "srkl", "kl", _ACCEPTANCE),
    Claim(_DISTILLM, _SKEW, "srkl", "rkl", _ACCEPTANCE),
)


def rows(cells: Mapping[Cell, Measurement]) -> list[dict]:
    """A row for each claim that the cells speak of: how much more is accepted, a fraction,
    corrected by Holm over rows.

    Ratios are of means over the cells, which share documents, seeds and, by teacher, its own text.
    """
    found = {claim: _estimate(claim, cells) for claim in CLAIMS}
    found = {claim: one for claim, one in found.items() if one is not None}
    p_values = [estimate.p_value for estimate, _, _ in found.values()]
    corrected = zip(
        found.items(), statistics.holm_levels(p_values), statistics.holm(p_values), strict=True
    )
    return [_row(claim, *one, level, p_value) for (claim, one), level, p_value in corrected]


def _row(claim, estimate, by_seed, count, level, p_value):
    at = estimate.at_level(level)
    verdict = verdicts.verdict(at.value, at.low, at.high, by_seed)
    if verdict == "real":
        verdict = "holds" if at.value > 0 else "the opposite"
    change = {"change": at.value, "change_low": at.low, "change_high": at.high}
    return {
        **{name: getattr(claim, name) for name in ("source", "reported", "loss", "than")},
        "trained_on": claim.context or "",
        **{name: getattr(claim.key, name) for name in ("measure", "temperature", "gamma")},
        "cells": count,
        **{name: math.expm1(value) for name, value in change.items()},
        "p_value": p_value,
        "verdict": verdict,
    }


def _estimate(claim, cells):
    """(the logarithm of the ratio, the difference of each seed, cells); None where no two can be
    compared."""
    seeds = max(
        (each for measured in cells.values() for each in measured.losses.values()),
        key=len,
        default=(),
    )
    pairs = [pair for cell in cells if (pair := _pair(claim, cell, cells, seeds)) is not None]
    if not pairs:
        return None
    ours, theirs = (ranking.mean(side) for side in zip(*pairs, strict=True))
    logarithms, influence = statistics.log_ratio(*ours, *theirs)
    return statistics.estimate(logarithms, influence), ours[0] - theirs[0], len(pairs)


def _pair(claim, cell, cells, seeds):
    """Sums of both sides of the claim in a cell; None where one was not measured or lost a student
    of `seeds`."""
    other = cell if claim.context is None else dataclasses.replace(cell, context="corpus")
    if claim.context not in (None, cell.context) or other not in cells:
        return None
    sides = [(cells[cell], claim.loss), (cells[other], claim.than)]
    if any(
        (loss, claim.key) not in measured.sums or measured.losses[loss] != seeds
        for measured, loss in sides
    ):
        return None
    return [measured.sums[loss, claim.key] for measured, loss in sides]
