"""Which loss of the menu, or sum of up to three, the observed values are."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from jaxdiv.audit import menu
from jaxdiv.audit.fits import TOLERANCE, Best, Observed, refine, rounded, singles, sums, weigh
from jaxdiv.audit.forms import Other
from jaxdiv.audit.inputs import Rows
from jaxdiv.audit.menu import Candidate
from jaxdiv.audit.readings import CLEAN, Reading, roles_of

HEAVY = 3e4  # a weight over the values' size that only a parameter at its limit brings
NOISE = 6e-7  # of a value of weight 1: float32 sums of a few nats


@dataclass(frozen=True)
class Fit:
    """An explanation of a row's value: weight · loss, summed, up to a function of the teacher.

    Attributes:
      parts: losses and weights, the factor of T included in the weights.
      temperatures: of teacher and student.
      residual: relative to the values' spread among students of one teacher.
      readings: of teacher and student, where a side is read wrongly.
      others: parts that are not on the menu, with weight and parameter.
      fed: what the function seems to take for logits: of student and teacher.
      outer: of the whole, such as `the square root`.
      loose: fits only to the digits of a half-precision type.
    """

    parts: tuple[tuple[Candidate, float], ...]
    temperatures: tuple[float, float]
    residual: float
    readings: tuple[Reading, Reading] = (CLEAN, CLEAN)
    others: tuple[tuple[Other, float, float | None], ...] = ()
    fed: tuple[str, str] = ("logits", "logits")
    outer: str = ""
    loose: bool = False

    @property
    def weights(self) -> list[float]:
        return [weight for _, weight in self.parts] + [weight for _, weight, _ in self.others]

    @property
    def temperature(self) -> float:
        return self.temperatures[0]

    @property
    def clean(self) -> bool:
        """Whether it is the menu's loss with nothing read wrongly, so that it can be foretold
        anywhere."""
        right = all(candidate.right_powers and not candidate.warm for candidate, _ in self.parts)
        sides = (
            all(reading.clean for reading in self.readings)
            and self.temperatures[0] == self.temperatures[1]
        )
        return (
            right
            and sides
            and self.fed == ("logits", "logits")
            and not (self.others or self.outer or self.loose)
        )

    def predict(self, rows: Rows) -> np.ndarray | None:
        """[K], up to what was added; of rows before they are fed. None if a function stands around
        it."""
        if self.outer:
            return None
        student, teacher = rows.student.astype(np.float64), rows.teacher.astype(np.float64)
        warm = roles_of(student, teacher, rows.labels, self.readings, self.temperatures)
        cold = roles_of(student, teacher, rows.labels, self.readings, (1.0, 1.0))
        total = np.zeros(len(rows.labels))
        with np.errstate(all="ignore"):
            for candidate, weight in self.parts:
                total = total + weight * candidate.column(
                    cold if candidate.cold else warm, self.temperatures[1]
                )
            for other, weight, value in self.others:
                total = total + weight * (
                    other.form(warm) if value is None else other.form(warm, value)
                )
        return total


def allowed(weights: Iterable[float], observed: Observed) -> float:
    """The residual that float32 explains."""
    spread = np.sqrt(np.mean(observed.centred**2))
    return max(TOLERANCE, NOISE * sum(map(abs, weights)) / max(spread, 1e-30))


def identify(observed: Observed, rows: Rows) -> Fit | None:
    """The plainest clean fit, or None."""
    return _by_stages((_of_one, _of_one_refined, _of_two, _of_three), observed, rows)


def identify_one(observed: Observed, rows: Rows) -> Fit | None:
    """As `identify`, of single losses and sums of two."""
    return _by_stages((_of_one, _of_one_refined, _of_two), observed, rows)


def identify_single(observed: Observed, rows: Rows) -> Fit | None:
    """As `identify`, of single losses."""
    return _by_stages((_of_one, _of_one_refined), observed, rows)


def _by_stages(stages, observed, rows):
    for stage in stages:
        good = [fit for fit in stage(observed, rows) if fits(fit, observed)]
        if good:
            return plainest(good, observed, rows)
    return None


def fits(fit: Fit, observed: Observed) -> bool:
    """Whether it explains the values as far as float32 tells, by parts that don't cancel and are
    not at a limit."""
    light = max(map(abs, fit.weights)) < HEAVY * _size(observed)
    return fit.residual < allowed(fit.weights, observed) and light and _inside(fit)


def _size(observed):
    return float(np.sqrt(np.mean(observed.values**2)))


def _inside(fit):
    if not all(0.04 < temperature < 200 for temperature in fit.temperatures):
        return False
    for candidate, _ in fit.parts:
        for key, value in candidate.parameters:
            parameter = candidate.entry.parameters[key]
            plain = parameter.allows(value) and value in (parameter.default, 0, 1)
            margin = 4e-3 * min(parameter.high - parameter.low, 5)
            if not plain and not parameter.low + margin < value < parameter.high - margin:
                return False
    return True


def _tables(rows):
    teachers = len(np.unique(rows.groups))
    for temperature in menu.TEMPERATURES:
        yield (
            temperature,
            *menu.table(
                rows.student.shape[-1], temperature, teachers, len(rows.labels) // teachers
            ),
        )


def _fit(best: Best, candidates, temperature) -> Fit:
    parts = tuple(
        (candidates[i], weight) for i, weight in zip(best.index, best.weights, strict=True)
    )
    if all(candidate.cold for candidate, _ in parts):
        temperature = 1.0
    return Fit(parts, (temperature, temperature), best.residual)


def _of_one(observed, rows):
    for temperature, candidates, columns in _tables(rows):
        yield from (_fit(best, candidates, temperature) for best in singles(columns, observed))


def _of_one_refined(observed, rows):
    best_of = {}
    for fit in _of_one(observed, rows):
        candidate = fit.parts[0][0]
        key = candidate.name, candidate.powers
        if key not in best_of or fit.residual < best_of[key].residual:
            best_of[key] = fit
    for fit in sorted(best_of.values(), key=lambda fit: fit.residual)[:10]:
        yield refined(fit, observed, rows)


def _of_two(observed, rows):
    return _of_sum(observed, rows, 2)


def _of_three(observed, rows):
    return _of_sum(observed, rows, 3)


def _of_sum(observed, rows, size):
    found = []
    for temperature, candidates, columns in _tables(rows):
        kept = range(len(candidates))
        if size > 2:
            kept = [
                i
                for i, candidate in enumerate(candidates)
                if candidate.complexity == len(candidate.parameters)
            ]
        chosen = [candidates[i] for i in kept]
        found += [
            _fit(best, chosen, temperature) for best in sums(columns[list(kept)], observed, size)
        ]
    found.sort(key=lambda fit: fit.residual)
    if found and fits(found[0], observed):
        return found[:60]
    distinct = {}
    for fit in found:
        distinct.setdefault(
            tuple((candidate.name, candidate.powers) for candidate, _ in fit.parts), fit
        )
    return [refined(fit, observed, rows) for fit in list(distinct.values())[:12]]


def refined(fit: Fit, observed: Observed, rows: Rows) -> Fit:
    """The fit with temperature and parameters adjusted, then rounded as far as the residual
    allows."""
    candidates = [candidate for candidate, _ in fit.parts]
    bounds, start = [(0.0, math.inf)], [fit.temperature]
    for candidate in candidates:
        for key, value in candidate.parameters:
            parameter = candidate.entry.parameters[key]
            if not getattr(parameter, "whole", False):
                bounds.append((parameter.low, parameter.high))
                start.append(value)

    def placed(point):
        values = iter(point[1:])
        return [
            candidate.with_values(
                value if getattr(candidate.entry.parameters[key], "whole", False) else next(values)
                for key, value in candidate.parameters
            )
            for candidate in candidates
        ]

    def model(point):
        return np.stack([menu.values(candidate, rows, point[0]) for candidate in placed(point)])

    found = refine(model, start, bounds, observed)
    point, weights, residual = rounding(
        model, found.parameters, observed, found.residual, found.weights
    )
    parts = tuple(zip(placed(point), weights, strict=True))
    return Fit(parts, (point[0], point[0]), residual)


def rounding(model: Callable, point, observed: Observed, residual: float, weights):
    """Parameters rounded one after the other while the fit stays as good; (point, weights,
    residual)."""
    limit = allowed(weights, observed)
    if residual > limit:
        return tuple(point), tuple(weights), residual
    point = list(point)
    for i, value in enumerate(point):
        for plain in rounded(value):
            trial = [*point[:i], plain, *point[i + 1 :]]
            with np.errstate(all="ignore"):
                trial_weights, trial_residual = weigh(np.atleast_2d(model(trial)), observed)
            if trial_residual < max(1.5 * residual, 0.5 * limit):
                point, weights, residual = trial, tuple(map(float, trial_weights)), trial_residual
                break
    return tuple(point), tuple(weights), residual


def plainest(good: list[Fit], observed: Observed, rows: Rows) -> Fit:
    """Of fits that are equally good: nothing added, a weight that is explained, few mistakes and
    parameters."""
    least = min(fit.residual for fit in good)
    close = [fit for fit in good if fit.residual < max(4 * least, TOLERANCE / 10)]
    return min(close, key=lambda fit: doubts(fit, observed, rows))


def doubts(fit: Fit, observed: Observed, rows: Rows) -> tuple:
    """What speaks against a fit, the weightiest first."""
    sides = [reading.roles for reading in fit.readings if not reading.clean] + [
        fed != "logits" for fed in fit.fed
    ]
    return (
        not is_nothing(offset(fit, observed, rows), observed),
        not _explained(fit, rows.student.shape[-1]),
        bool(fit.others) and fit.others[0][0].code == "not_on_menu",
        sum(sides) + (fit.temperatures[0] != fit.temperatures[1]),
        sum(candidate.complexity for candidate, _ in fit.parts),
        fit.temperature != 1,
        sum(len(candidate.text) for candidate, _ in fit.parts),
        fit.residual,
    )


def _explained(fit, classes):
    """Whether its weights sum to 1, with the factor of T or without, or to the 1/V of a mean over
    classes."""
    warm = max(fit.temperatures, key=lambda t: abs(math.log(t)))
    weight = sum(w / warm**c.power for c, w in fit.parts if c.entry.target)
    weight += sum(w / warm**2 for _, w, _ in fit.others)
    plain = sum(w for c, w in fit.parts if c.entry.target) + sum(w for _, w, _ in fit.others)
    units = (1, -1, 1 / classes, -1 / classes)
    return any(math.isclose(one, unit, rel_tol=1e-3) for one in (weight, plain) for unit in units)


def offset(fit: Fit, observed: Observed, rows: Rows) -> np.ndarray:
    """What the fit lacks to each value, [K]."""
    return observed.values - fit.predict(rows)


def is_nothing(added: np.ndarray, observed: Observed) -> bool:
    return float(np.max(np.abs(added))) < 2e-4 * float(np.sqrt(np.mean(observed.values**2)) + 1e-30)
