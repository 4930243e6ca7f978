"""Intervals for ratios of pooled sums over documents and seeds, two crossed sources of noise.

A measure is, for each seed, a ratio of sums over documents (accepted by drafted, tokens by calls), and its value the
mean over seeds. Its variance is the variance between seeds plus that between documents; either alone calls differences
real that are not. NumPy only; every count is a double.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

Bounds = tuple[float, float]
_UNBOUNDED = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval; NaN where the data can't tell.

    value: the estimate; low, high: the interval; standard_error; df: Satterthwaite's degrees of freedom of Student's
    t; p_value: two-sided, for a true value of 0; bounds: the range that the interval is clipped to.
    """

    value: float
    low: float
    high: float
    standard_error: float
    df: float
    p_value: float
    bounds: Bounds = _UNBOUNDED

    def at_level(self, level: float) -> "Estimate":
        """The same estimate with its interval at another confidence level in (0, 1)."""
        _check_level(level)
        reach = self.standard_error * special.stdtrit(self.df, (1 + level) / 2)
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
    """The mean over seeds of sum(sums) / sum(counts), with an interval that covers documents and seeds.

    Args:
      sums: [S, K], one row a seed, one column a document.
      counts: [S, K], or [K] if the seeds share them; documents that count nothing are dropped.
      runs: [S] labels, the run that each seed belongs to. With two runs or more their means stand in place of the
        seeds, since seeds of one run share its teacher and its data order.
      level: confidence of the interval.
      bounds: the range of the measure; the interval is clipped to it.

    Returns:
      An `Estimate`. With one seed it covers documents alone; with one document it has no interval. At level .95 it
      covers .93 to .98 with three seeds (simulated), .92 where their noise is far above the documents'.

    Raises:
      ValueError: shapes that don't fit, or a level outside (0, 1).
    """
    sums, counts = _rows(sums, counts)
    kept = np.any(counts != 0, axis=0)
    return _estimate(*_ratios(sums[:, kept], counts[:, kept]), runs=runs, level=level, bounds=bounds)


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
    """The measure of a minus that of b, over the same seeds and documents; arguments as `interval`.

    What a and b share, a hard document or a lucky seed, drops out before the variances are taken.
    """
    sums_a, counts_a = _rows(sums_a, counts_a)
    sums_b, counts_b = _rows(sums_b, counts_b)
    if sums_a.shape != sums_b.shape:
        raise ValueError(f"`sums_a` and `sums_b` must have one shape, got {sums_a.shape} and {sums_b.shape}.")
    kept = np.any((counts_a != 0) | (counts_b != 0), axis=0)
    values_a, influence_a = _ratios(sums_a[:, kept], counts_a[:, kept])
    values_b, influence_b = _ratios(sums_b[:, kept], counts_b[:, kept])
    return _estimate(values_a - values_b, influence_a - influence_b, runs=runs, level=level, bounds=bounds)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values for [m] comparisons: reject where they are below the error rate of the whole family.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1)
    return adjusted


def holm_levels(p_values: Sequence[float], *, level: float = 0.95) -> np.ndarray:
    """A confidence level for each of [m] comparisons, so that its interval excludes 0 exactly when Holm rejects.

    Holm's steps: the smallest p-value is held against (1 - level) / m, the next against (1 - level) / (m - 1), and so
    on up to the first that fails, whose level all the rest take. For `Estimate.at_level`.
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


def _ratios(sums, counts):
    """Each seed's ratio [S], and how much of it each document moves (linearised) [S, K]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.sum(counts, axis=1)
        values = np.sum(sums, axis=1) / total
        return values, (sums - values[:, None] * counts) / total[:, None]


def _estimate(values, influence, *, runs, level, bounds):
    values, influence = _clusters(values, influence, runs)
    documents = influence.shape[1]
    if documents < 2 or not np.all(np.isfinite(values)):
        return Estimate(float(np.mean(values)), *[math.nan] * 5, bounds)
    variances = [documents / (documents - 1) * np.sum(np.mean(influence, axis=0) ** 2)]
    dfs = [documents - 1]
    if values.size > 1:
        variances.append(np.var(values, ddof=1) / values.size)
        dfs.append(values.size - 1)
    value, variance = float(np.mean(values)), sum(variances)
    if variance == 0:
        unbounded = Estimate(value, value, value, 0.0, float(min(dfs)), float(value == 0), bounds)
        return unbounded.at_level(level)
    df = variance**2 / sum(v**2 / d for v, d in zip(variances, dfs, strict=True))
    error = math.sqrt(variance)
    p_value = 2 * special.stdtr(df, -abs(value) / error)
    return Estimate(value, math.nan, math.nan, error, float(df), float(p_value), bounds).at_level(level)


def _clusters(values, influence, runs):
    """Means over the seeds of each run, if there are two runs or more; else as they are."""
    if runs is None:
        return values, influence
    names, index = np.unique(np.asarray(runs), return_inverse=True)
    if index.shape != values.shape:
        raise ValueError(f"`runs` must be one label for each of {values.size} seeds, got {index.size}.")
    if names.size < 2:
        return values, influence
    weights = (index == np.arange(names.size)[:, None]) / np.bincount(index)[:, None]
    return weights @ values, weights @ influence


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
