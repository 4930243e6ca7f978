"""The registry's losses as candidates: values of rows at any temperature and parameters."""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxdiv.audit.inputs import ProbeRows
from jaxdiv.divergences.entry import Entry
from jaxdiv.divergences.registry import ENTRIES

# fmt: off
TEMPERATURES = (
    1.0, 2.0, 4.0, 3.0, 5.0, 8.0, 10.0, 0.5, 0.7, 1.5, 2.5, 6.0, 7.0, 1.2, 15.0, 20.0
)
# fmt: on
# Candidates are tried in this order, then in the registry's, so that common losses are named first.
POPULAR = (
    "forward_kl",
    "cross_entropy",
    "cross_entropy_data",
    "reverse_kl",
    "jensen_shannon",
    "total_variation",
)
# Every call has one shape, as XLA compiles each operation for each shape. -inf pads the classes.
_ROWS, _CLASSES = 640, 131
_COMPILED = ("head",)  # parameters of losses with loops, which are slow unless compiled
_ANY_K = (*range(1, 33), 40, 48, 50, 64, 100, 128)


@dataclass(frozen=True)
class Candidate:
    """A loss of the registry with its parameters.

    Attributes:
      at_temperature: whether it is at T, although the registry holds it at 1.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()
    at_temperature: bool = False

    @property
    def entry(self) -> Entry:
        return ENTRIES[self.name]

    @property
    def fixed(self) -> bool:
        """True if it stays at T = 1: losses on labels and regularizers."""
        return self.entry.target != "logits" and not self.at_temperature

    @property
    def is_loss(self) -> bool:
        """True if it looks at a target: a regularizer doesn't."""
        return bool(self.entry.target)

    @property
    def power(self) -> int:
        """The power of T that `values` lack; a loss in parts has its own factors in them."""
        return 0 if self.entry.parts else self.entry.temperature_power

    @property
    def text(self) -> str:
        """The loss as `jaxdiv.get` takes it, by the shortest name."""
        name = min((self.name, *self.entry.aliases), key=len)
        defaults = self.entry.defaults
        changed = [f"{k}={v:.4g}" for k, v in self.parameters if v != defaults[k]]
        return f"{name}({', '.join(changed)})" if changed else name

    @property
    def exact_text(self) -> str:
        inside = ", ".join(f"{k}={v if v % 1 else int(v)}" for k, v in self.parameters)
        return f"{self.name}({inside})" if inside else self.name

    @property
    def free(self) -> list[str]:
        """The parameters that a fit may change continuously."""
        return [k for k, p in self.entry.parameters.items() if not p.whole and k not in _COMPILED]

    def with_values(self, values: Mapping[str, float]) -> "Candidate":
        return replace(self, parameters=tuple((dict(self.parameters) | values).items()))


def plain_candidates() -> list[Candidate]:
    """Returns every loss with its default parameters, the popular ones first."""
    names = (*POPULAR, *(name for name in ENTRIES if name not in POPULAR))
    return [Candidate(name, tuple(ENTRIES[name].defaults.items())) for name in names]


def variants(candidate: Candidate, classes: int) -> list[Candidate]:
    """Returns a loss at other values of its parameter."""
    others = []
    for key, parameter in candidate.entry.parameters.items():
        if parameter.whole:
            grid = [k for k in _ANY_K if k < classes]
        elif key in _COMPILED:
            grid = [0.3, 0.7, 0.9]
        elif math.isinf(parameter.high):
            grid = [parameter.low + step for step in (0.5, 1.0, 2.0, 5.0, 10.0)]
        else:
            grid = np.linspace(parameter.low, parameter.high, 11).round(6)
        allowed = (v for v in grid if parameter.allows(v) and v != parameter.default)
        others += [candidate.with_values({key: float(value)}) for value in allowed]
    return others


def values(candidate: Candidate, rows: ProbeRows, temperatures: Iterable[float]) -> np.ndarray:
    """Returns float64 values [temperatures, K] without the factor of T.

    Losses in parts, each with its own power of T, include their factors.
    """
    temperatures = np.asarray(tuple(temperatures), np.float64)
    divisors = np.ones_like(temperatures) if candidate.fixed else temperatures
    student, teacher = (
        (side.astype(np.float64) / divisors[:, None, None]).reshape(-1, side.shape[-1])
        for side in (rows.student, rows.teacher)
    )
    labels = np.tile(rows.labels, len(divisors))
    powers = np.repeat(divisors, len(rows.labels))
    chunks = [
        _chunk(candidate, *(part[i : i + _ROWS] for part in (student, teacher, labels, powers)))
        for i in range(0, len(labels), _ROWS)
    ]
    return np.concatenate(chunks).reshape(len(divisors), -1)


def _chunk(
    candidate: Candidate,
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    temperatures: np.ndarray,
) -> np.ndarray:
    """Returns the values of at most `_ROWS` rows by the registry's own function."""
    entry, count = candidate.entry, len(labels)
    more = [(0, _ROWS - count), (0, 0)], [(0, 0), (0, max(0, _CLASSES - student.shape[-1]))]
    sides = [np.pad(side, more[0], mode="edge") for side in (student, teacher)]
    sides = [np.pad(side, more[1], constant_values=-np.inf) for side in sides]
    targets = {"logits": (sides[1],), "labels": (np.pad(labels, more[0][0]),)}
    with jax.enable_x64(True):
        parts = _function(candidate)(sides[0], *targets.get(entry.target, ()))
        parts = [np.asarray(part)[:count] for part in (parts if entry.parts else (parts,))]
    powers = entry.parts[1] if entry.parts else (0,)
    with np.errstate(invalid="ignore"):
        return sum(part * temperatures**p for part, p in zip(parts, powers, strict=True))


@functools.lru_cache(maxsize=64)
def _function(candidate):
    """Returns the registry's function, compiled quickly if its parameters are the usual ones.

    With other parameters each operation runs by itself: a fit changes them at each step.
    """
    entry, parameters = candidate.entry, dict(candidate.parameters)
    function = functools.partial(entry.parts[0] if entry.parts else entry.function, **parameters)
    if parameters != entry.defaults and not set(parameters) & set(_COMPILED):
        return function
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def table(candidate: Candidate, rows: ProbeRows) -> np.ndarray:
    """Returns the values of rows at each of `TEMPERATURES`, [temperatures, K]; kept for later."""
    return _table(candidate, *(part.tobytes() for part in rows[:3]), rows.student.shape)


@functools.lru_cache(maxsize=512)
def _table(candidate, student, teacher, labels, shape):
    sides = (np.frombuffer(side, np.float32).reshape(shape) for side in (student, teacher))
    rows = ProbeRows(*sides, np.frombuffer(labels, np.int32), np.zeros(shape[0], int))
    return values(candidate, rows, TEMPERATURES)


def text_of(weights: Mapping[Candidate, float]) -> str:
    """Returns a weighted sum as `jaxdiv.get` takes it."""
    pieces = [
        ("" if math.isclose(weight, 1, rel_tol=1e-6) else f"{weight:.4g}*") + candidate.text
        for candidate, weight in weights.items()
    ]
    return " + ".join(pieces)
