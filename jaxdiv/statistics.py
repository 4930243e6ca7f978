"""Intervals for ratios of pooled sums over documents and seeds, two crossed sources of noise.

A measure is, for each seed, a ratio of sums over documents (accepted by drafted, tokens by calls),
and its value the mean over seeds. Its variance is the variance between seeds plus that between
documents; either one alone would make chance differences look real. Everything is in float64.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

Bounds = tuple[float, float]
_UNBOUNDED = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval; NaN if the data are too few.

    The interval reaches √Σ v·t²_df on either side: each source has its own Student's t. A single t
    by Satterthwaite has too light tails if few seeds carry the noise, and Holm's correction works
    in the tails.

    Attributes:
      value: the estimate.
      low, high: the interval.
      sources: (variance, degrees of freedom) of each source of noise.
      p_value: two-sided, for a true value of 0.
      bounds: the range that the interval is clipped to.
    """

    value: float
    low: float
    high: float
    sources: tuple[tuple[float, int], ...]
    p_value: float
    bounds: Bounds = _UNBOUNDED

    @property
    def standard_error(self) -> float:
        return math.sqrt(sum(variance for variance, _ in self.sources))

    def at_level(self, level: float) -> "Estimate":
        """Returns the estimate with its interval at another confidence level in (0, 1)."""
        _check_level(level)
        reach = _reach(self.sources, 1 - level)
        low, high = np.clip([self.value - reach, self.value + reach], *self.bounds)
        return dataclasses.replace(self, low=float(low), high=float(high))


def interval(
    sums: np.ndarray,
    counts: np.ndarray,
    *,
    runs: Sequence | None = None,
    level: float = 0.95,
    bounds: Bounds = _UNBOUNDED,
) -> Estimate:
    """Estimates the mean over seeds of sum(sums) / sum(counts), over documents and seeds.

    Args:
      sums: [S, K], one row a seed, one column a document.
      counts: [S, K], or [K] if the seeds share them; documents that count nothing are dropped.
      runs: [S] labels, the run of each seed. With two runs or more their means replace the seeds,
        since seeds of one run share its teacher and its data order.
      level: confidence of the interval.
      bounds: range of the measure; the interval is clipped to it.

    Returns:
      An `Estimate`. With one seed it covers documents alone; with one document it has no interval.

    Raises:
      ValueError: if shapes don't fit, or the level is outside (0, 1).
    """
    sums, counts = _rows(sums, counts)
    counted = np.any(counts != 0, axis=0)
    values, influence = ratios(sums[:, counted], counts[:, counted])
    return estimate(values, influence, runs=runs, level=level, bounds=bounds)


def paired_difference(
    sums_a: np.ndarray,
    counts_a: np.ndarray,
    sums_b: np.ndarray,
    counts_b: np.ndarray,
    *,
    runs: Sequence | None = None,
    level: float = 0.95,
    bounds: Bounds = _UNBOUNDED,
) -> Estimate:
    """Estimates the measure of a minus that of b, over the same seeds and documents.

    A hard document or a lucky seed that a and b share cancels before the variances are taken.
    Arguments as in `interval`.
    """
    (values_a, influence_a), (values_b, influence_b) = _pairs(sums_a, counts_a, sums_b, counts_b)
    return estimate(
        values_a - values_b, influence_a - influence_b, runs=runs, level=level, bounds=bounds
    )


def paired_log_ratio(
    sums_a: np.ndarray,
    counts_a: np.ndarray,
    sums_b: np.ndarray,
    counts_b: np.ndarray,
    *,
    level: float = 0.95,
) -> Estimate:
    """Estimates the natural logarithm of the measure of a over that of b, both means over seeds.

    The interval is linearised about both means. If one of them is 0, the value is infinite or NaN,
    without an interval. Arguments as in `interval`.
    """
    (values_a, influence_a), (values_b, influence_b) = _pairs(sums_a, counts_a, sums_b, counts_b)
    if not (np.mean(values_a) > 0 and np.mean(values_b) > 0):
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(np.log(np.divide(np.mean(values_a), np.mean(values_b))))
        return Estimate(value, math.nan, math.nan, ((math.nan, 1),), math.nan)
    return estimate(*log_ratio(values_a, influence_a, values_b, influence_b), level=level)


def log_ratio(
    values_a: np.ndarray, influence_a: np.ndarray, values_b: np.ndarray, influence_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns values [S] and influences [S, K] of the logarithm of a over b, for `estimate`.

    They are linearised about both means, which must be above 0. The arguments are results of
    `ratios`.
    """
    mean_a, mean_b = np.mean(values_a), np.mean(values_b)
    logarithms = np.log(mean_a / mean_b) + (values_a / mean_a - values_b / mean_b)
    return logarithms, influence_a / mean_a - influence_b / mean_b


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Returns Holm's adjusted p-values of [m] comparisons, to compare with the family's error rate.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1)
    return adjusted


def holm_levels(p_values: Sequence[float], *, level: float = 0.95) -> np.ndarray:
    """Returns a confidence level a comparison whose interval excludes 0 exactly if Holm rejects.

    Holm compares the smallest p-value with (1 - level) / m, the next with (1 - level) / (m - 1), up
    to the first that fails; the rest take its level. For `Estimate.at_level`.
    """
    _check_level(level)
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    allowed = (1 - level) / np.arange(p.size, 0, -1)
    fails = np.flatnonzero(~(p[order] < allowed))
    if fails.size:
        allowed[fails[0] :] = allowed[fails[0]]
    levels = np.empty_like(p)
    levels[order] = 1 - allowed
    return levels


def _rows(sums, counts):
    sums = np.asarray(sums, float)
    counts = np.asarray(counts, float)
    if sums.ndim != 2 or counts.shape not in (sums.shape, sums.shape[1:]):
        raise ValueError(
            "`sums` must be [seeds, documents] and `counts` the same or [documents], "
            f"got {sums.shape} and {counts.shape}."
        )
    return sums, np.broadcast_to(counts, sums.shape)


def _pairs(
    sums_a: np.ndarray, counts_a: np.ndarray, sums_b: np.ndarray, counts_b: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Returns `ratios` of both, without the documents that count nothing in either."""
    sums_a, counts_a = _rows(sums_a, counts_a)
    sums_b, counts_b = _rows(sums_b, counts_b)
    if sums_a.shape != sums_b.shape:
        raise ValueError(
            f"`sums_a` and `sums_b` must have one shape, got {sums_a.shape} and {sums_b.shape}."
        )
    counted = np.any((counts_a != 0) | (counts_b != 0), axis=0)
    pairs = ((sums_a, counts_a), (sums_b, counts_b))
    return tuple(ratios(sums[:, counted], counts[:, counted]) for sums, counts in pairs)


def ratios(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each seed's ratio [S] of sums [S, K], and each document's influence on it [S, K]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.sum(counts, axis=1)
        values = np.sum(sums, axis=1) / total
        return values, (sums - values[:, None] * counts) / total[:, None]


def estimate(
    values: np.ndarray,
    influence: np.ndarray,
    *,
    runs: Sequence | None = None,
    level: float = 0.95,
    bounds: Bounds = _UNBOUNDED,
) -> Estimate:
    """Estimates the mean over seeds of a number that is linear in ratios.

    Args:
      values: [S], as `ratios` returns them, or sums and differences of such.
      influence: [S, K], likewise.
      runs, level, bounds: as in `interval`.
    """
    values, influence = _clusters(values, influence, runs)
    documents, value = influence.shape[1], float(np.mean(values))
    if documents < 2 or not np.all(np.isfinite(values)):
        return Estimate(value, math.nan, math.nan, ((math.nan, 1),), math.nan, bounds)
    squares = float(np.sum(np.mean(influence, axis=0) ** 2))
    sources = [(documents / (documents - 1) * squares, documents - 1)]
    if values.size > 1:
        sources.append((float(np.var(values, ddof=1)) / values.size, values.size - 1))
    sources = tuple(sources)
    p_value = _p_value(value, sources)
    return Estimate(value, math.nan, math.nan, sources, p_value, bounds).at_level(level)


def _reach(sources, tails):
    """Returns half the width of the interval that leaves out `tails`."""
    squares = (variance * special.stdtrit(df, tails / 2) ** 2 for variance, df in sources)
    return math.sqrt(sum(squares))


def _p_value(value, sources):
    """Returns the tails at which the interval just reaches 0."""
    if all(variance == 0 for variance, _ in sources):
        return float(value == 0)
    least = -300.0  # a logarithm; below it the square of Student's t may overflow
    if value == 0 or _reach(sources, math.exp(least)) <= abs(value):
        return float(value == 0)
    return math.exp(
        optimize.brentq(lambda x: _reach(sources, math.exp(x)) - abs(value), least, 0.0, xtol=1e-13)
    )


def _clusters(
    values: np.ndarray, influence: np.ndarray, runs: Sequence | None
) -> tuple[np.ndarray, np.ndarray]:
    """Averages values [S] and influences [S, K] over each run, if there are two runs or more."""
    if runs is None:
        return values, influence
    names, index = np.unique(np.asarray(runs), return_inverse=True)
    if index.shape != values.shape:
        raise ValueError(
            f"`runs` must be one label for each of {values.size} seeds, got {index.size}."
        )
    if names.size < 2:
        return values, influence
    weights = (index == np.arange(names.size)[:, None]) / np.bincount(index)[:, None]
    return weights @ values, weights @ influence


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
