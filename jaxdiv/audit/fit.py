"""Least squares of observed values on columns of losses, up to a function of the teacher alone.

Rows come in groups of one teacher. Within a group everything that depends on the teacher alone,
such as an entropy or a constant, is the same: centred values show the student's part only.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

TOLERANCE = 3e-5  # of the centred values' size: what float32 leaves of a right loss
_NOISE = 6e-7  # of a value of weight 1: float32 sums of a few nats


class Observed(NamedTuple):
    """Values [K] of the audited loss, and the teacher's index of each."""

    values: np.ndarray
    groups: np.ndarray

    @property
    def centred(self) -> np.ndarray:
        return centre(self.values, self.groups)

    @property
    def size(self) -> float:
        return float(np.sqrt(np.mean(self.values**2))) + 1e-30

    def allowed(self, weights) -> float:
        """Returns the relative residual that float32 explains."""
        spread = max(np.sqrt(np.mean(self.centred**2)), 1e-30)
        return max(TOLERANCE, _NOISE * float(np.sum(np.abs(weights))) / spread)

    def is_nothing(self, extra: np.ndarray) -> bool:
        """Returns whether a difference of values is rounding alone."""
        return float(np.max(np.abs(extra))) < 2e-4 * self.size


def centre(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns [..., K] less the mean of each group."""
    member = (groups[:, None] == np.unique(groups)).astype(np.float64)
    with np.errstate(all="ignore"):
        return values - (values @ member / member.sum(0)) @ member.T


class Weighing(NamedTuple):
    """Weights of columns, and the residual relative to the centred values."""

    weights: np.ndarray
    residual: float


def singles(columns: np.ndarray, observed: Observed) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights and relative residuals of each column [..., K] alone; inf where undefined."""
    x, y = centre(columns, observed.groups), observed.centred
    with np.errstate(all="ignore"):
        power = (x * x).sum(-1)
        weights = (x * y).sum(-1) / power
        residuals = np.sqrt(((y - weights[..., None] * x) ** 2).sum(-1) / (y @ y))
    bad = ~np.isfinite(residuals) | (power < 1e-18)
    return weights, np.where(bad, np.inf, residuals)


def pairs(columns: np.ndarray, observed: Observed, count: int) -> list[tuple[int, int]]:
    """Returns the best pairs of columns [n, K] with weights of one sign, best first."""
    x, y = centre(columns, observed.groups), observed.centred
    with np.errstate(all="ignore"):
        x = x / np.sqrt((x * x).sum(-1, keepdims=True))
    usable = np.flatnonzero(np.all(np.isfinite(x), -1))
    x, y = x[usable], y / np.sqrt(y @ y)
    i, j = np.triu_indices(len(usable), 1)
    overlap, right = (x @ x.T)[i, j], x @ y
    with np.errstate(all="ignore"):
        first = (right[i] - overlap * right[j]) / (1 - overlap**2)
        second = (right[j] - overlap * right[i]) / (1 - overlap**2)
        residuals = 1 - first * right[i] - second * right[j]
    good = (first * second > 0) & (1 - overlap**2 > 1e-9) & np.isfinite(residuals)
    order = np.argsort(np.where(good, residuals, np.inf))[:count]
    return [(int(usable[i[k]]), int(usable[j[k]])) for k in order if good[k]]


def weigh(columns: np.ndarray, observed: Observed) -> Weighing:
    """Returns the least-squares weights [n] of columns [n, K]."""
    residual, weights = _residual(columns, observed)
    return Weighing(weights, float(np.linalg.norm(residual)))


def _residual(columns, observed):
    with np.errstate(all="ignore"):
        x, y = centre(columns, observed.groups), observed.centred
    size = np.linalg.norm(y)
    if not np.all(np.isfinite(x)) or size == 0:
        return np.full(len(y), 1e3), np.full(len(x), np.nan)
    weights = np.linalg.lstsq(x.T, y, rcond=1e-10)[0]
    return (y - weights @ x) / size, weights


def refine(
    model: Callable[[Sequence[float]], np.ndarray],
    start: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    observed: Observed,
) -> tuple[np.ndarray, Weighing]:
    """Returns the parameters that fit best, rounded as far as the fit allows, and the weights.

    The weights are solved for at each step, so that the search is over the parameters alone.

    Args:
      model: from parameters to columns [n, K].
      start: the first parameters, inside the bounds.
      bounds: the open interval of each parameter.
      observed: the values to explain.
    """
    from scipy.optimize import least_squares  # loaded when needed: `import jaxdiv` needs JAX alone

    low, high = np.array(bounds, np.float64).T
    margin = 1e-3 * np.minimum(high - low, 1)
    start = np.clip(np.asarray(start, np.float64), low + margin, high - margin)
    options = {"bounds": (low, high), "diff_step": 1e-5, "max_nfev": 20, "xtol": 1e-9}
    point = least_squares(lambda x: _residual(model(x), observed)[0], start, **options).x
    weighing = weigh(model(point), observed)
    limit = observed.allowed(weighing.weights)
    if weighing.residual < limit:
        for i, value in enumerate(point):
            for plain in roundings(float(value))[:-1]:
                if not low[i] < plain < high[i]:
                    continue
                trial = np.array([*point[:i], plain, *point[i + 1 :]])
                again = weigh(model(trial), observed)
                if again.residual < max(1.5 * weighing.residual, 0.5 * limit):
                    point, weighing = trial, again
                    break
    return point, weighing


def roundings(value: float) -> list[float]:
    """Returns plainer numbers near one, the plainest first, itself last."""
    if value == 0 or not math.isfinite(value):
        return [value]
    size = math.floor(math.log10(abs(value)))
    return [round(value, digits - size) for digits in (0, 1, 2, 3)] + [value]


def plain(value: float, tolerance: float = 3e-4) -> float:
    """Returns the plainest number within a relative tolerance."""
    return next(one for one in roundings(value) if math.isclose(one, value, rel_tol=tolerance))
