"""Least squares of observed values on columns of losses, up to a function of the teacher alone.

Rows come in groups of one teacher. Within a group everything that depends on the teacher alone,
such as an entropy that was dropped or a constant, is the same, so that centred values see the
student's part only.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

TOLERANCE = 3e-5  # of the centred values' size: what float32 leaves of a right loss


class Observed(NamedTuple):
    """Values [K] and the group of each."""

    values: np.ndarray
    groups: np.ndarray

    @property
    def centred(self) -> np.ndarray:
        return centre(self.values, self.groups)


def centre(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[..., K] less the mean of each group."""
    member = (groups[:, None] == np.unique(groups)).astype(np.float64)
    with np.errstate(all="ignore"):
        means = values @ member / member.sum(0)
        return values - means @ member.T


class Best(NamedTuple):
    """Columns' indices, their weights, and the residual relative to the centred values."""

    index: tuple[int, ...]
    weights: tuple[float, ...]
    residual: float


def singles(columns: np.ndarray, observed: Observed, count: int = 12) -> list[Best]:
    """The best fits of one of the columns [n, K], best first."""
    x, y = centre(columns, observed.groups), observed.centred
    with np.errstate(all="ignore"):
        power = (x * x).sum(-1)
        weights = x @ y / power
        residuals = np.sqrt(((y - weights[:, None] * x) ** 2).sum(-1) / (y @ y))
    residuals = np.where((power > 1e-18) & np.isfinite(residuals), residuals, np.inf)
    order = np.argsort(residuals, kind="stable")[:count]
    return [
        Best((int(i),), (float(weights[i]),), float(residuals[i]))
        for i in order
        if residuals[i] < np.inf
    ]


def sums(columns: np.ndarray, observed: Observed, size: int, count: int = 12) -> list[Best]:
    """The best fits of `size` (2 or 3) columns with weights of one sign, best first."""
    x, y = centre(columns, observed.groups), observed.centred
    with np.errstate(all="ignore"):
        norms = np.sqrt((x * x).sum(-1))
    usable = np.flatnonzero((norms > 1e-9) & np.isfinite(norms))
    if len(usable) < size or not y @ y > 0:
        return []
    x = x[usable] / norms[usable, None]
    y_norm = math.sqrt(y @ y)
    gram, target = x @ x.T, x @ (y / y_norm)
    index = _subsets(len(usable), size)
    weights, residuals = _solve(gram, target, index)
    one_sign = np.all(weights > 0, -1) | np.all(weights < 0, -1)
    residuals = np.where(one_sign & np.isfinite(residuals), residuals, np.inf)
    order = np.argsort(residuals)[:count]
    found = []
    for i in order[residuals[order] < np.inf]:
        chosen = usable[index[i]]
        found.append(
            Best(
                tuple(map(int, chosen)),
                tuple(map(float, weights[i] * y_norm / norms[chosen])),
                float(math.sqrt(max(residuals[i], 0))),
            )
        )
    return found


@functools.lru_cache(maxsize=32)
def _subsets(n, size):
    return np.array(list(itertools.combinations(range(n), size)), int).reshape(-1, size)


def _solve(gram, target, index):
    """Weights [m, size] and squared residuals [m] of unit columns and a unit target; inf where they
    are collinear."""
    right = target[index]
    if index.shape[1] == 2:
        return _solve_pairs(gram[index[:, 0], index[:, 1]], right)
    matrices = gram[index[:, :, None], index[:, None, :]]
    determinants = np.linalg.det(matrices)
    safe = determinants > 1e-9
    matrices = np.where(safe[:, None, None], matrices, np.eye(index.shape[1]))
    weights = np.linalg.solve(matrices, right[..., None])[..., 0]
    residuals = 1 - (weights * right).sum(-1)
    return weights, np.where(safe, residuals, np.inf)


def _solve_pairs(overlap, right):
    """As `_solve`, in closed form, of two unit columns with an inner product."""
    determinants = 1 - overlap**2
    safe = np.where(determinants > 1e-9, determinants, np.inf)
    weights = (right - overlap[:, None] * right[:, ::-1]) / safe[:, None]
    return weights, np.where(determinants > 1e-9, 1 - (weights * right).sum(-1), np.inf)


def weigh(columns: np.ndarray, observed: Observed) -> tuple[np.ndarray, float]:
    """Least-squares weights [n] of columns [n, K], and the relative residual."""
    residual, weights = _residual(columns, observed)
    return weights, float(np.linalg.norm(residual))


def _residual(columns, observed):
    x, y = centre(columns, observed.groups), observed.centred
    size = np.linalg.norm(y)
    if not np.all(np.isfinite(x)):
        return np.full(len(y), 1e3), np.full(len(x), np.nan)
    weights = np.linalg.lstsq(x.T, y, rcond=1e-10)[0]
    return (y - weights @ x) / size, weights


class Refined(NamedTuple):
    """Parameters, weights and residual of a refined fit."""

    parameters: tuple[float, ...]
    weights: tuple[float, ...]
    residual: float


def refine(
    model: Callable[[Sequence[float]], np.ndarray],
    start: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    observed: Observed,
    steps: int = 25,
) -> Refined:
    """Damped Gauss-Newton over parameters in open intervals; weights are solved for at each step.

    Args:
      model: from parameters to columns [n, K].
      start: parameters.
      bounds: (low, high) of each; high may be inf.
      observed: what is to be explained.
      steps: at most.
    """
    inner = np.array([_inward(value, *bound) for value, bound in zip(start, bounds, strict=True)])

    def residual_at(inner):
        outer = [_outward(value, *bound) for value, bound in zip(inner, bounds, strict=True)]
        with np.errstate(all="ignore"):
            residual, weights = _residual(np.atleast_2d(model(outer)), observed)
        return residual, weights, outer

    residual, weights, outer = residual_at(inner)
    damping = 1e-3
    for _ in range(steps if len(inner) else 0):
        jacobian = np.stack(
            [
                (residual_at(inner + step)[0] - residual) / 1e-5
                for step in 1e-5 * np.eye(len(inner))
            ],
            -1,
        )
        square = jacobian.T @ jacobian
        move = -np.linalg.lstsq(
            square + damping * np.diag(np.diag(square) + 1e-12), jacobian.T @ residual, rcond=None
        )[0]
        trial = residual_at(inner + np.clip(move, -1, 1))
        if np.linalg.norm(trial[0]) < np.linalg.norm(residual):
            gain = 1 - np.linalg.norm(trial[0]) / np.linalg.norm(residual)
            inner, (residual, weights, outer) = inner + np.clip(move, -1, 1), trial
            damping = max(damping / 5, 1e-9)
            if gain < 1e-4:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    return Refined(tuple(outer), tuple(map(float, weights)), float(np.linalg.norm(residual)))


def _inward(value, low, high):
    if math.isinf(high):
        return math.log(max(value - low, 1e-6))
    share = min(max((value - low) / (high - low), 1e-3), 1 - 1e-3)
    return math.log(share / (1 - share))


def _outward(inner, low, high):
    if math.isinf(high):
        return low + math.exp(min(inner, 50))
    return low + (high - low) / (1 + math.exp(-max(min(inner, 50), -50)))


def rounded(value: float) -> list[float]:
    """Plainer numbers near one, the plainest first, itself last."""
    if value == 0 or not math.isfinite(value):
        return [value]
    size = math.floor(math.log10(abs(value)))
    return [round(value, digits - size) for digits in (0, 1, 2, 3)] + [value]
