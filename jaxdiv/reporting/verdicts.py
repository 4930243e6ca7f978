"""Verdicts on differences in acceptance: which ones the numbers show to be real.

Losses are compared with one reference, not with each other.
"""

import math
from collections.abc import Iterable

from markupsafe import Markup

REAL = "real"  # the interval excludes 0, and all seeds, enough of them, have one sign
NOT_SHOWN = "not shown"
FEW_SEEDS = "these students only"
REFERENCE = "reference"  # the loss that the others are compared with
FLOOR = "floor"  # the untrained student
UNCOMPARED = ""
ENOUGH_SEEDS = 3
# Two float32 trainings of one loss, written in two ways, differ by up to this much in acceptance.
ROUNDING = 1e-6
MEANING = Markup(
    "A difference is <b>real</b> if its corrected interval excludes 0 and all seeds, three or "
    "more, have one sign; otherwise it is <b>not shown</b>. With fewer than three seeds it holds "
    "for <b>these students only</b>. Losses are compared with the reference, not with each other."
)


def verdict(value: float, low: float, high: float, by_seed: Iterable[float]) -> str:
    """Returns `REAL`, `NOT_SHOWN` or, with too few seeds, `FEW_SEEDS`.

    Args:
      value: the pooled difference.
      low, high: its interval, corrected over the losses that were compared.
      by_seed: the difference of each seed.
    """
    signs = [math.copysign(1, d) if d else 0.0 for d in by_seed if math.isfinite(d)]
    if len(signs) < ENOUGH_SEEDS:
        return FEW_SEEDS
    excludes_0 = low > 0 or high < 0
    one_sign = len(set(signs)) == 1 and signs[0] != 0
    return REAL if excludes_0 and one_sign and abs(value) > ROUNDING else NOT_SHOWN


def side(verdict: str, value: float, low: float, high: float) -> int:
    """Returns 1 or -1 for a loss above or below the reference, in general or among these students.

    Returns 0 where the interval holds 0 or the difference is not shown.
    """
    few = verdict == FEW_SEEDS and abs(value) > ROUNDING
    return (low > 0) - (high < 0) if few or verdict == REAL else 0
