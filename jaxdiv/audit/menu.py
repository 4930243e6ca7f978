"""The registry's losses as candidates: each with parameters from a grid, evaluated at any
temperature."""

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit.forms import FORMS, PARTS, Roles, clean_roles
from jaxdiv.audit.inputs import Rows, random_rows
from jaxdiv.divergences.registry import ENTRIES

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0, 0.5, 0.7, 1.5, 2.5, 6.0, 20.0)
_WHOLE = (*range(1, 33), 40, 48, 50, 64, 100, 128, 200, 256)


@dataclass(frozen=True)
class Candidate:
    """A loss of the menu with its parameters.

    Attributes:
      powers: where parts scale differently, the power of T on each; the loss's own are right.
      warm: whether a loss of labels is at T, not at 1.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()
    powers: tuple[int, ...] | None = None
    warm: bool = False

    @property
    def entry(self):
        return ENTRIES[self.name]

    @property
    def cold(self) -> bool:
        """Whether it stays at T = 1: labels and regularizers."""
        return self.entry.target != "logits" and not self.warm

    @property
    def power(self) -> int:
        """T to this power is the factor that `column` lacks."""
        return 0 if self.powers else self.entry.temperature_power

    @property
    def right_powers(self) -> bool:
        return self.powers is None or self.powers == self.entry.parts[1]

    @property
    def text(self) -> str:
        """As `jaxdiv.get` takes it, by the shortest name."""
        name = min((self.name, *self.entry.aliases), key=len)
        told = [
            f"{key}={value:.4g}"
            for key, value in self.parameters
            if value != self.entry.parameters[key].default
        ]
        return f"{name}({', '.join(told)})" if told else name

    @property
    def complexity(self) -> int:
        """Parameters that differ from their defaults count two, others one."""
        defaults = self.entry.parameters
        return sum(1 + (value != defaults[key].default) for key, value in self.parameters)

    def with_values(self, values) -> "Candidate":
        keys = [key for key, _ in self.parameters]
        return replace(self, parameters=tuple(zip(keys, map(float, values), strict=True)))

    def column(self, roles: Roles, temperature: float) -> np.ndarray:
        """Its value of each row, without the factor of T unless `powers` are given."""
        parameters = dict(self.parameters)
        if self.powers and self.name in PARTS:
            parts = PARTS[self.name](roles, **parameters)
            return sum(
                part * temperature**power for part, power in zip(parts, self.powers, strict=True)
            )
        if self.name in FORMS:
            return FORMS[self.name](roles, **parameters)
        return _by_registry(self, roles, temperature)


def _by_registry(candidate, roles, temperature):
    """A loss without a form: its own function, of logits."""
    entry, parameters = candidate.entry, dict(candidate.parameters)
    others = {"logits": (roles.teacher,), "labels": (roles.labels,)}.get(entry.target, ())
    arguments = [
        np.asarray(side, np.float32 if side.dtype.kind == "f" else np.int32)
        for side in (roles.student, *others)
    ]
    if candidate.powers:
        parts = entry.parts[0](*arguments, **parameters)
        values = sum(
            part * temperature**power for part, power in zip(parts, candidate.powers, strict=True)
        )
    else:
        values = entry.function(*arguments, **parameters)
    return np.asarray(values, np.float64)


def heated_roles(rows: Rows, temperature: float) -> Roles:
    return clean_roles(
        rows.student.astype(np.float64) / temperature,
        rows.teacher.astype(np.float64) / temperature,
        rows.labels,
    )


def values(candidate: Candidate, rows: Rows, temperature: float) -> np.ndarray:
    """[K] in float64, the factor of T as in `Candidate.column`."""
    with np.errstate(all="ignore"):
        return candidate.column(
            heated_roles(rows, 1.0 if candidate.cold else temperature), temperature
        )


def grid(parameter, classes: int) -> tuple[float, ...]:
    """Values of one parameter, its default first."""
    if getattr(parameter, "whole", False):
        found = [float(k) for k in _WHOLE if k < classes]
    elif math.isinf(parameter.high):
        found = [parameter.low + step for step in (0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)]
    else:
        found = np.linspace(parameter.low, parameter.high, 11).round(6).tolist()
    found = [
        float(value) for value in found if parameter.allows(value) and value != parameter.default
    ]
    return (parameter.default, *found)


def candidates(classes: int, dense: bool = True) -> tuple[Candidate, ...]:
    """Every loss of the menu; `dense`: at each grid point of its parameters, else at three."""
    found = []
    for name, entry in ENTRIES.items():
        grids = [grid(parameter, classes) for parameter in entry.parameters.values()]
        grids = grids if dense else [points[:: max(1, len(points) // 3)] for points in grids]
        for point in itertools.product(*grids):
            found.append(
                Candidate(name, tuple(zip(entry.parameters, map(float, point), strict=True)))
            )
    return tuple(found)


def with_powers(candidate: Candidate, temperature: float) -> tuple[Candidate, ...]:
    """A loss in parts with the right factors, and with those that are often taken for them; of
    labels, at 1 and T."""
    if temperature == 1:
        return (candidate,)
    if candidate.entry.target == "labels":
        return (candidate, replace(candidate, warm=True))
    if candidate.entry.parts is None:
        return (candidate,)
    right = candidate.entry.parts[1]
    kinds = [right, *((power,) * len(right) for power in (0, 1, 2))]
    return tuple(replace(candidate, powers=powers) for powers in kinds)


@functools.cache
def table(
    classes: int, temperature: float, teachers: int = 8, students: int = 5
) -> tuple[tuple, np.ndarray]:
    """Candidates of one temperature and their values [n, K] on the designed rows."""
    rows = random_rows(classes, teachers, students)
    roles = {False: heated_roles(rows, temperature), True: heated_roles(rows, 1.0)}
    kept, columns = [], []
    for base in candidates(classes):
        for candidate in with_powers(base, temperature):
            with np.errstate(all="ignore"):
                column = candidate.column(roles[candidate.cold], temperature)
            if np.all(np.isfinite(column)):
                kept.append(candidate)
                columns.append(column)
    return tuple(kept), np.stack(columns)


def text_of(parts: Mapping[Candidate, float]) -> str:
    """A weighted sum as `jaxdiv.get` takes it."""
    if len(parts) == 1 and math.isclose(next(iter(parts.values())), 1, rel_tol=1e-3):
        return next(iter(parts)).text
    weights = {
        candidate: "" if math.isclose(weight, 1, rel_tol=1e-6) else f"{weight:.4g}*"
        for candidate, weight in parts.items()
    }
    return " + ".join(weights[candidate] + candidate.text for candidate in parts)
