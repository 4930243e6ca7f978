"""Fits of one loss whose temperature and parameters are adjusted, then rounded to plain numbers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxdiv.audit.fits import Fit, Observed, fit_of
from jaxdiv.audit.formulas import SAME, TEMPERATURES, Candidate, Family, right


@dataclass(frozen=True)
class _Space:
    """Points [1 + n]: the temperature of one loss and `n` of its parameters, named by `keys`.

    The weight is solved for at each point, so that a search is over the others alone.
    """

    candidate: Candidate
    keys: list[str]
    observed: Observed

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest value of each coordinate, [1 + n] each."""
        parameters = [self.candidate.entry.parameters[key] for key in self.keys]
        pairs = [(0.05, 100.0), *((one.low, min(one.high, 50.0)) for one in parameters)]
        low, high = np.array(pairs).T
        return low, high

    def family(self, point: np.ndarray) -> Family:
        values = dict(zip(self.keys, map(float, point[1:]), strict=True))
        return right([self.candidate.with_values(values)])

    def weigh(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the weight at a point, and the relative residuals [K]."""
        temperatures = np.full((2, 1), point[0])
        columns = self.family(point).columns(self.observed.rows, temperatures)[:, 0]
        (weight,), residual = self.observed.weigh(columns)
        return float(weight), residual


def refined_fits(losses: list[Candidate], observed: Observed, free: bool) -> Iterator[Fit]:
    """Yields near losses with their temperature, and parameters if `free`, adjusted."""
    residuals = observed.singles(right(losses).columns(observed.rows, SAME))[1]
    best = {}
    for i in np.argsort(residuals.min(-1)):
        if residuals[i].min() < 0.2 and not (free and not losses[i].free):
            best.setdefault(losses[i].name, (losses[i], TEMPERATURES[np.argmin(residuals[i])]))
    for candidate, t in best.values():
        fit = _refine(candidate, t, candidate.free if free else [], observed)
        # A free temperature and parameter explain much: here nothing may be left over.
        if fit and not fit.extra and fit.is_explained(observed.rows.student.shape[-1]):
            yield fit


def _refine(candidate: Candidate, t: float, keys: list[str], observed: Observed) -> Fit | None:
    """Returns the loss at the temperature and parameters that explain the values, if any do."""
    space = _Space(candidate, keys, observed)
    point = _search(space, [t, *(dict(candidate.parameters)[key] for key in keys)])
    weight, residual = space.weigh(point)
    if not np.linalg.norm(residual) < observed.allowed(weight):
        return None
    point = _round(space, point)
    low, high = space.bounds
    edge = 4e-3 * np.minimum(high - low, 5)
    if not np.all((low + edge < point) & (point < high - edge)):
        return None
    loss, (weight, _) = space.family(point), space.weigh(point)
    return fit_of(loss, ((*loss.formulas, weight),), np.full(2, point[0]), observed)


def _search(space: _Space, start: list[float]) -> np.ndarray:
    """Returns the point of least squares near `start`, [1 + n]."""
    from scipy.optimize import least_squares  # loaded when needed: `import jaxdiv` needs JAX alone

    low, high = space.bounds
    margin = 1e-3 * np.minimum(high - low, 1)
    start = np.clip(start, low + margin, high - margin)
    options = {"bounds": (low, high), "diff_step": 1e-5, "max_nfev": 20, "xtol": 1e-9}
    return least_squares(lambda point: space.weigh(point)[1], start, **options).x


def _round(space: _Space, point: np.ndarray) -> np.ndarray:
    """Returns the point with each coordinate rounded as far as the fit allows."""
    low, high = space.bounds
    weight, residual = space.weigh(point)
    size, limit = np.linalg.norm(residual), space.observed.allowed(weight)
    for i, value in enumerate(point):
        for plainer in roundings(float(value))[:-1]:
            if not low[i] < plainer < high[i]:
                continue
            trial = np.array([*point[:i], plainer, *point[i + 1 :]])
            trial_size = np.linalg.norm(space.weigh(trial)[1])
            if trial_size < max(1.5 * size, 0.5 * limit):
                point, size = trial, trial_size
                break
    return point


def roundings(value: float) -> list[float]:
    """Returns plainer numbers near one, the plainest first, itself last."""
    if value == 0 or not math.isfinite(value):
        return [value]
    size = math.floor(math.log10(abs(value)))
    return [round(value, digits - size) for digits in (0, 1, 2, 3)] + [value]


def plainest(value, tolerance=3e-4):
    """Returns the plainest number within a relative tolerance."""
    return next(one for one in roundings(value) if math.isclose(one, value, rel_tol=tolerance))
