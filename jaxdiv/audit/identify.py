"""Names the loss of the registry, or the weighted pair, that the observed values are."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit import candidates
from jaxdiv.audit.candidates import POPULAR, TEMPERATURES, Candidate
from jaxdiv.audit.fit import Observed, centre, pairs, refine, singles, weigh
from jaxdiv.audit.inputs import ProbeRows

_LARGEST = 3e4  # a weight over the values' size; more means that two parts cancel
_CUSTOMARY = {  # factors by which textbooks differ
    "jeffreys": (0.5,),
    "jensen_shannon": (2.0,),
    "total_variation": (2.0,),
    "squared_hellinger": (2.0, 4.0),
    "pearson_chi_squared": (0.5,),
    "neyman_chi_squared": (0.5,),
}


@dataclass(frozen=True)
class Fit:
    """An explanation of a row's value: the weighted sum of one or two losses.

    Attributes:
      parts: losses and their weights, the factor of T included in the weights.
      temperatures: of teacher and student.
      predict: from rows to their values.
      mistakes: codes and details of what is wrong in the formula.
      arguments: from rows to what the function takes in the place of logits.
      classes: how many classes exist, if the loss leaves the others out.
      extra: the code of a note if a function of the teacher is added, else empty.
      loose: whether it fits only to the digits of a half-precision type.
    """

    parts: tuple[tuple[Candidate, float], ...]
    temperatures: tuple[float, float]
    predict: Callable[[ProbeRows], np.ndarray]
    mistakes: tuple[tuple[str, dict], ...] = ()
    extra: str = ""
    loose: bool = False
    arguments: Callable[[ProbeRows], ProbeRows] = lambda rows: rows
    classes: int | None = None

    @property
    def temperature(self) -> float:
        """The temperature of both sides, or the one that isn't 1."""
        return max(self.temperatures, key=lambda t: abs(math.log(t)))

    @property
    def is_right(self) -> bool:
        """True if the registry's own loss has its values and gradients anywhere."""
        tempered = any(candidate.at_temperature for candidate, _ in self.parts)
        return bool(self.parts) and not (self.mistakes or self.loose or self.classes or tempered)


def factors(candidate: Candidate) -> tuple[float, ...]:
    """Returns the factors that are as common as the registry's, which is the first."""
    return (1.0, *_CUSTOMARY.get(candidate.name, ()))


def is_near(value: float, target: float) -> bool:
    return math.isclose(value, target, rel_tol=1e-3)


def exact_loss(observed: Observed, rows: ProbeRows) -> Fit | None:
    """Returns a loss with its usual parameters, or a popular pair, that explains everything.

    Nothing is left over and no factor is unexplained, so that no other loss has to be tried.
    """
    plain = candidates.plain_candidates()
    popular = plain[: len(POPULAR)]
    labels = next(c for c in popular if c.entry.target == "labels")
    partners = [*popular, replace(labels, at_temperature=True), Candidate("z_loss")]
    fits = itertools.chain(
        _single_fits(plain, observed, rows), _pair_fits(partners, observed, rows, 6)
    )
    second = None
    for fit in (fit for fit in fits if _is_exact(fit, rows)):
        # Rényi's is twice Bhattacharyya's: the one whose weight is right is meant.
        if all(is_near(w, fit.temperature**c.power) for c, w in fit.parts):
            return fit
        second = second or fit
    return second


def registry_loss(observed: Observed, rows: ProbeRows) -> Fit | None:
    return exact_loss(observed, rows) or any_loss(observed, rows)


def any_loss(observed: Observed, rows: ProbeRows) -> Fit | None:
    """Returns the plainest single loss or pair of the registry that explains the values."""
    classes = rows.student.shape[-1]
    plain = candidates.plain_candidates()
    varied = [variant for c in plain for variant in candidates.variants(c, classes)]
    for stage in (
        _single_fits(plain, observed, rows),
        _refined_singles(plain, observed, rows, free=False),
        _single_fits(varied, observed, rows),
        _refined_singles(plain + varied, observed, rows, free=True),
        _pair_fits(plain + varied, observed, rows, 30),
    ):
        fits = [fit for fit in stage if not _is_odd(fit)]
        if fits:
            return min(fits, key=lambda fit: _doubts(fit, classes))
    return None


def close_loss(observed: Observed, rows: ProbeRows) -> Fit | None:
    """Returns a popular loss that explains values in steps, as after a cast, to two digits."""
    fits = []
    for candidate in candidates.plain_candidates()[: len(POPULAR)]:
        columns = candidates.table(candidate, rows)
        weights, residuals = singles(columns, observed)
        for t, column, weight, residual in zip(
            TEMPERATURES, columns, weights, residuals, strict=True
        ):
            factor = t**candidate.power
            added = np.max(np.abs(observed.values - weight * column)) > 0.05 * observed.size
            if residual < 2e-2 and math.isclose(weight, factor, rel_tol=2e-2) and not added:
                fits.append((residual > 5e-3, t != 1, residual, candidate, t))
    if not fits:
        return None
    *_, candidate, t = min(fits, key=lambda each: each[:3])
    return replace(
        _fit(((candidate, t**candidate.power),), t, observed, rows), loose=True, extra=""
    )


def _classes(rows):
    return rows.student.shape[-1]


def _single_fits(losses: Iterable[Candidate], observed: Observed, rows: ProbeRows) -> Iterator[Fit]:
    for candidate in losses:
        weights, residuals = singles(candidates.table(candidate, rows), observed)
        for t, weight, residual in zip(TEMPERATURES, weights, residuals, strict=True):
            if residual < observed.allowed(weight) and not (candidate.fixed and t != 1):
                yield _fit(((candidate, float(weight)),), t, observed, rows)


def _pair_fits(
    losses: list[Candidate], observed: Observed, rows: ProbeRows, count: int
) -> Iterator[Fit]:
    """Yields pairs at one temperature that explain the values."""
    tables = np.stack([candidates.table(candidate, rows) for candidate in losses], 1)
    for t, columns in zip(TEMPERATURES, tables, strict=True):
        for i, j in pairs(columns, observed, count):
            weights, residual = weigh(columns[[i, j]], observed)
            if residual < observed.allowed(weights):
                parts = tuple(zip((losses[i], losses[j]), map(float, weights), strict=True))
                yield _fit(parts, t, observed, rows)


def _refined_singles(
    losses: list[Candidate], observed: Observed, rows: ProbeRows, free: bool
) -> Iterator[Fit]:
    """Yields the best few losses with temperature, and parameters if `free`, adjusted."""
    best = {}
    for candidate in losses:
        _, residuals = singles(candidates.table(candidate, rows), observed)
        k = int(np.argmin(residuals))
        if residuals[k] < min(0.2, best.get(candidate.name, (np.inf,))[0]):
            best[candidate.name] = residuals[k], candidate, TEMPERATURES[k]
    for _, candidate, t in sorted(best.values(), key=lambda each: each[0])[:6]:
        keys = candidate.free if free else []
        yield from _refine(candidate, t, keys, observed, rows)


def _refine(
    candidate: Candidate, temperature: float, keys: list[str], observed: Observed, rows: ProbeRows
) -> Iterator[Fit]:
    """Yields the loss with temperature and some parameters adjusted, if it explains the values."""
    start, bounds = [temperature], [(0.05, 100.0)]
    for key in keys:
        parameter = candidate.entry.parameters[key]
        start.append(dict(candidate.parameters)[key])
        bounds.append((parameter.low, min(parameter.high, 50.0)))

    def placed(point):
        return candidate.with_values(dict(zip(keys, map(float, point[1:]), strict=True)))

    def model(point):
        return candidates.values(placed(point), rows, point[:1])

    point, (weights, residual) = refine(model, start, bounds, observed)
    inside = all(
        low + 4e-3 * min(high - low, 5) < value < high - 4e-3 * min(high - low, 5)
        for value, (low, high) in zip(point, bounds, strict=True)
    )
    if inside and residual < observed.allowed(weights):
        fit = _fit(((placed(point), float(weights[0])),), float(point[0]), observed, rows)
        # A free temperature and parameter explain much: here nothing may be left over.
        if not fit.extra and _is_explained(fit, _classes(rows)):
            yield fit


def _fit(parts: tuple, temperature: float, observed: Observed, rows: ProbeRows) -> Fit:
    if all(candidate.fixed for candidate, _ in parts):
        temperature = 1.0

    def predict(rows):
        return sum(w * candidates.values(c, rows, (temperature,))[0] for c, w in parts)

    fit = Fit(parts, (temperature, temperature), predict)
    return replace(fit, extra=_extra(observed.values - predict(rows), observed, rows, temperature))


def _extra(extra: np.ndarray, observed: Observed, rows: ProbeRows, temperature: float) -> str:
    """Returns the code of a note on what is added to the loss, empty if nothing is."""
    if observed.is_nothing(extra):
        return ""
    by_teacher = extra - centre(extra, observed.groups)
    shifted = rows.teacher / temperature
    log_p = shifted - np.logaddexp.reduce(shifted, -1, keepdims=True)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    line = np.polyval(np.polyfit(entropy, by_teacher, 1), entropy)
    is_entropy = np.abs(line - by_teacher).max() < 1e-3 * np.ptp(by_teacher)
    return "entropy_dropped" if is_entropy else "teacher_term"


def _is_exact(fit: Fit, rows: ProbeRows) -> bool:
    return not fit.extra and not _is_odd(fit) and _is_explained(fit, _classes(rows))


def _is_odd(fit: Fit) -> bool:
    """Returns whether parts cancel, or one weighs next to nothing: another loss explains better."""
    weights = [abs(weight) for candidate, weight in fit.parts if candidate.is_loss]
    tiny = weights and min(weights) < 1e-2 * max(weights)
    return bool(
        tiny
        or max(abs(w) for _, w in fit.parts) > _LARGEST
        or (len(fit.parts) > 1 and fit.extra == "teacher_term")
    )


def _is_explained(fit: Fit, classes: int) -> bool:
    """Returns whether the weights sum to 1, or 1/V, with the factor of T or without."""
    t = fit.temperature
    losses = [(c, w) for c, w in fit.parts if c.is_loss] or list(fit.parts)
    with_factor = sum(w / t**c.power for c, w in losses)
    without = sum(w for _, w in losses)
    allowed = factors(losses[0][0]) if len(losses) == 1 else (1.0,)
    units = [unit * f for f in allowed for unit in (1, -1, 1 / classes, -1 / classes)]
    totals = (with_factor, without, with_factor * t, with_factor * t * t)
    each_is_one = all(any(is_near(w / t**k, 1) for k in (c.power, 0, 2)) for c, w in losses)
    return each_is_one or any(is_near(total, unit) for total in totals for unit in units)


def _doubts(fit: Fit, classes: int) -> tuple:
    """Returns what speaks against a fit, the weightiest first."""
    changed = sum(
        value != candidate.entry.defaults[key]
        for candidate, _ in fit.parts
        for key, value in candidate.parameters
    )
    text = "".join(candidate.text for candidate, _ in fit.parts)
    unexplained = not _is_explained(fit, classes)
    return bool(fit.extra), unexplained, len(fit.parts), changed, fit.temperature != 1, len(text)
