"""Fits of losses to observed values: one loss, or a weighted pair, at temperatures of a grid.

Weights are least squares of values on columns of losses, up to a function of the teacher alone:
such a function, an entropy or a constant, is the same in all rows of one teacher. Centred values
show the student's part only.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit.formulas import SAME, Candidate, Family, log_softmax
from jaxdiv.audit.inputs import ProbeRows

_NOISE = 6e-7  # of a value of weight 1: float32 sums of a few nats
_LARGEST = 3e4  # a weight over the values' size; more means that two parts cancel


@dataclass(frozen=True)
class Observed:
    """Values [K] of the audited loss on rows of logits.

    Attributes:
      tolerance: of the centred values' size, what float32 leaves of a right loss.
    """

    values: np.ndarray
    rows: ProbeRows
    tolerance: float = 3e-5

    @functools.cached_property
    def centred(self) -> np.ndarray:
        return self.centre(self.values)

    @property
    def size(self) -> float:
        return float(np.sqrt(np.mean(self.values**2))) + 1e-30

    def centre(self, values: np.ndarray) -> np.ndarray:
        """Returns [..., K] less the mean of each teacher's rows."""
        member = (self.rows.groups[:, None] == np.unique(self.rows.groups)).astype(np.float64)
        with np.errstate(all="ignore"):
            return values - (values @ member / member.sum(0)) @ member.T

    def allowed(self, weight: np.ndarray) -> np.ndarray:
        """Returns the relative residual that float32 explains."""
        spread = max(np.sqrt(np.mean(self.centred**2)), 1e-30)
        return np.maximum(self.tolerance, _NOISE * np.abs(weight) / spread)

    def is_nothing(self, extra: np.ndarray) -> bool:
        """Returns whether a difference of values is rounding alone."""
        return float(np.max(np.abs(extra))) < 2e-4 * self.size

    def singles(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns weights and relative residuals of each column [..., K]; inf where undefined."""
        x, y = self.centre(columns), self.centred
        with np.errstate(all="ignore"):
            power = (x * x).sum(-1)
            weights = (x * y).sum(-1) / power
            residuals = np.sqrt(((y - weights[..., None] * x) ** 2).sum(-1) / (y @ y))
        return weights, np.where(~np.isfinite(residuals) | (power < 1e-18), np.inf, residuals)

    def weigh(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the least-squares weights [n] of columns [n, K], and the relative residuals."""
        x, y = self.centre(columns), self.centred
        size = np.linalg.norm(y)
        if not np.all(np.isfinite(x)) or size == 0:
            return np.full(len(x), np.nan), np.full(len(y), 1e3)
        weights = np.linalg.lstsq(x.T, y, rcond=1e-10)[0]
        return weights, (y - weights @ x) / size


@dataclass(frozen=True)
class Fit:
    """An explanation of a row's value: the weighted sum of one or two losses.

    Attributes:
      parts: losses and their weights, the factor of T included in the weights.
      temperatures: of teacher and student.
      family: what the losses share: they are right, or wrong in one way.
      mistakes: codes and details of what is wrong.
      arguments: from rows to what the function takes in the place of logits.
      classes: how many classes exist, if the loss leaves the others out.
      extra: the code of a note if a function of the teacher is added, else empty.
      loose: whether it fits only to the digits of a half-precision type.
    """

    parts: tuple[tuple[Candidate, float], ...]
    temperatures: tuple[float, float]
    family: Family
    mistakes: tuple[tuple[str, dict], ...] = ()
    extra: str = ""
    loose: bool = False
    arguments: Callable[[ProbeRows], ProbeRows] = lambda rows: rows
    classes: int | None = None

    def predict(self, rows: ProbeRows) -> np.ndarray:
        """Returns the values of rows, [K]."""
        forms = {candidate: self.family.formulas[candidate] for candidate, _ in self.parts}
        family, temperatures = self.family._replace(formulas=forms), np.array(self.temperatures)
        columns = family.columns(rows.first_classes(self.classes), temperatures[:, None])[:, 0]
        return np.array([weight for _, weight in self.parts]) @ columns

    @property
    def temperature(self) -> float:
        """The temperature of both sides, or the one that isn't 1."""
        return max(self.temperatures, key=lambda t: abs(math.log(t)))

    @property
    def is_right(self) -> bool:
        """True if the registry's own loss has its values and gradients anywhere."""
        tempered = any(candidate.at_temperature for candidate, _ in self.parts)
        return not (self.mistakes or self.loose or self.classes or tempered)

    @property
    def is_odd(self) -> bool:
        """True if another loss explains better.

        Its parts cancel, one weighs next to nothing, or one is at T where T is 1.
        """
        weights = [abs(weight) for candidate, weight in self.parts if candidate.is_loss]
        return bool(
            (weights and min(weights) < 1e-2 * max(weights))
            or max(abs(weight) for _, weight in self.parts) > _LARGEST
            or (len(self.parts) > 1 and self.extra == "teacher_term")
            or (self.temperature == 1 and any(loss.at_temperature for loss, _ in self.parts))
        )

    def is_explained(self, classes: int) -> bool:
        """Returns whether the weights sum to 1, or 1/V, with the factor of T or without."""
        losses = [(c, w) for c, w in self.parts if c.is_loss] or list(self.parts)
        allowed = losses[0][0].factors if len(losses) == 1 else (1.0,)
        units = [unit * f for f in allowed for unit in (1, -1, 1 / classes, -1 / classes)]
        for t in self.temperatures:
            totals = [sum(w / t**c.power for c, w in losses)]
            totals += [sum(w for _, w in losses) / t**power for power in (0, 1, 2)]
            if any(is_near(total, unit) for total in totals for unit in units):
                return True
            if all(any(is_near(w / t**k, 1) for k in (c.power, 0, 2)) for c, w in losses):
                return True
        return False


def is_near(value: float, target: float) -> bool:
    return math.isclose(value, target, rel_tol=1e-3)


def single_fits(
    family: Family, observed: Observed, temperatures: np.ndarray = SAME
) -> Iterator[Fit]:
    """Yields each loss of a family that explains the values alone; temperatures are [2, n]."""
    weights, residuals = observed.singles(family.columns(observed.rows, temperatures))
    losses = list(family.formulas)
    for i, k in np.argwhere(residuals < observed.allowed(weights)):
        if not (losses[i].fixed and k):  # whose values are one at all temperatures
            yield fit_of(family, ((losses[i], float(weights[i, k])),), temperatures[:, k], observed)


def pair_fits(family: Family, observed: Observed, count: int) -> Iterator[Fit]:
    """Yields pairs at one temperature that explain the values, the best `count` tried at each."""
    losses, tables = list(family.formulas), family.columns(observed.rows, SAME)
    i, j = np.triu_indices(len(losses), 1)
    for n, temperatures in enumerate(SAME.T):
        with np.errstate(all="ignore"):
            x, y = observed.centre(tables[:, n]), observed.centred
            x, y = x / np.linalg.norm(x, axis=-1, keepdims=True), y / np.linalg.norm(y)
            overlap, right_side = (x @ x.T)[i, j], x @ y
            first = (right_side[i] - overlap * right_side[j]) / (1 - overlap**2)
            second = (right_side[j] - overlap * right_side[i]) / (1 - overlap**2)
            residuals = 1 - first * right_side[i] - second * right_side[j]
            usable = (first * second > 0) & (1 - overlap**2 > 1e-9) & np.isfinite(residuals)
        order = np.argsort(np.where(usable, residuals, np.inf))[:count]
        for k in order[usable[order]]:
            weights, residual = observed.weigh(tables[[i[k], j[k]], n])
            if np.linalg.norm(residual) < observed.allowed(np.sum(np.abs(weights))):
                parts = zip((losses[i[k]], losses[j[k]]), map(float, weights), strict=True)
                yield fit_of(family, tuple(parts), temperatures, observed)


def fit_of(family: Family, parts: tuple, temperatures: np.ndarray, observed: Observed) -> Fit:
    """Returns the fit of losses, with a note's code if a function of the teacher is added."""
    fit = Fit(parts, tuple(map(float, temperatures)), family)
    if all(candidate.fixed for candidate, _ in parts):
        fit = replace(fit, temperatures=(1.0, 1.0))
    extra = observed.values - fit.predict(observed.rows)
    if observed.is_nothing(extra):
        return fit
    by_teacher = extra - observed.centre(extra)
    log_p = log_softmax(observed.rows.teacher / fit.temperature)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    line = np.polyval(np.polyfit(entropy, by_teacher, 1), entropy)
    is_entropy = np.abs(line - by_teacher).max() < 1e-3 * np.ptp(by_teacher)
    return replace(fit, extra="entropy_dropped" if is_entropy else "teacher_term")
