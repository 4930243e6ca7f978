"""The registry's losses as formulas of probabilities and logarithms, in float64 NumPy.

They are written as an author writes them, so that each place can also hold something wrong. Many
temperatures and parameters are computed at once, without compilation.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxdiv.audit.inputs import ProbeRows
from jaxdiv.divergences.entry import Entry
from jaxdiv.divergences.registry import ENTRIES

# fmt: off
TEMPERATURES = (
    1.0, 2.0, 4.0, 3.0, 5.0, 8.0, 10.0, 0.5, 0.7, 1.5, 2.5, 6.0, 7.0, 1.2, 15.0, 20.0
)
# fmt: on
SAME = np.array([TEMPERATURES, TEMPERATURES])  # of teacher and student
_ANY_K = (*range(1, 33), 40, 48, 50, 64, 100, 128)


class Roles(NamedTuple):
    """Terms in the places of a formula, for K rows at n temperatures t, [n, 1].

    `p` and `q` are the probabilities of teacher and student, [n, K, V] as their logarithms. At
    T = 1 are the marks of `labels` and the student's `logits`, [K, V].
    """

    p: np.ndarray
    log_p: np.ndarray
    q: np.ndarray
    log_q: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    t: np.ndarray


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def right_roles(rows: ProbeRows, t_teacher: np.ndarray, t_student: np.ndarray) -> Roles:
    """Returns the roles of a right loss; temperatures are [n]."""
    log_p = log_softmax(rows.teacher / t_teacher[:, None, None])
    log_q = log_softmax(rows.student / t_student[:, None, None])
    labels = rows.labels[:, None] == np.arange(rows.student.shape[-1])
    return Roles(
        np.exp(log_p), log_p, np.exp(log_q), log_q, labels, rows.student, t_student[:, None]
    )


def kl(a: np.ndarray, log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    return (a * (log_a - log_b)).sum(-1)


def mixture_parts(r: Roles, beta: float) -> tuple[np.ndarray, ...]:
    """Returns KL(p‖M), KL(q‖M), KL(M‖p) and KL(M‖q) with M = βp + (1-β)q."""
    m = beta * r.p + (1 - beta) * r.q
    log_m = np.log(m)
    to_m = kl(r.p, r.log_p, log_m), kl(r.q, r.log_q, log_m)
    return *to_m, kl(m, log_m, r.log_p), kl(m, log_m, r.log_q)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Returns marks of the k largest of the last axis, or of all if there are fewer."""
    return x >= np.sort(x, axis=-1)[..., -min(k, x.shape[-1]), None]


def _cross_entropy(p: np.ndarray, log_q: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    hard = np.where(p == 0, 0, p * log_q).sum(-1)
    return -smoothing * log_q.mean(-1) - (1 - smoothing) * hard


def _jensen_shannon(r, beta):
    by_p, by_q = mixture_parts(r, beta)[:2]
    return beta * by_p + (1 - beta) * by_q


def _log_affinity(r, alpha):
    return np.logaddexp.reduce(alpha * r.log_p + (1 - alpha) * r.log_q, -1)


def _alpha_divergence(r, alpha):
    if alpha in (0, 1):
        return _forward_kl(r) if alpha else _reverse_kl(r)
    return -np.expm1(_log_affinity(r, alpha)) / (alpha * (1 - alpha))


def _adaptive_kl(r, head):
    gap, order = np.abs(r.p - r.q), np.argsort(-r.p, -1)
    inside = np.cumsum(np.take_along_axis(r.p, order, -1), -1) <= head
    inside[..., 0] = True  # the likeliest class alone may exceed the head
    share = (np.take_along_axis(gap, order, -1) * inside).sum(-1) / gap.sum(-1)
    return share * _forward_kl(r) + (1 - share) * _reverse_kl(r)


def _lk_hybrid(r, rate):
    variation = _total_variation(r)
    weight = np.exp(-rate * (1 - variation))
    return weight * _forward_kl(r) * r.t**2 + (1 - weight) * variation * r.t


def _forward_kl(r):
    return kl(r.p, r.log_p, r.log_q)


def _reverse_kl(r):
    return kl(r.q, r.log_q, r.log_p)


def _total_variation(r):
    return 0.5 * np.abs(r.p - r.q).sum(-1)


Formula = Callable[..., np.ndarray]
# Each by its name in the registry, from roles and the registry's parameters to [n, K]. They are
# tried in this order, so that common losses are named first.
FORMULAS: Mapping[str, Formula] = {
    "forward_kl": _forward_kl,
    "cross_entropy": lambda r, smoothing: _cross_entropy(r.p, r.log_q, smoothing),
    "cross_entropy_data": lambda r, smoothing: _cross_entropy(
        r.labels, log_softmax(r.logits), smoothing
    ),
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
    "total_variation": _total_variation,
    "cross_entropy_argmax": lambda r, smoothing: _cross_entropy(
        largest(r.p, 1), r.log_q, smoothing
    ),
    "cross_entropy_top_k": lambda r, k: _cross_entropy(r.p * largest(r.p, int(k)), r.log_q),
    "z_loss": lambda r: np.logaddexp.reduce(np.float64(r.logits), -1) ** 2,
    "jeffreys": lambda r: _forward_kl(r) + _reverse_kl(r),
    "adaptive_kl": _adaptive_kl,
    "reverse_jensen_shannon": lambda r, beta: _jensen_shannon(r, 1 - beta),
    "skew_kl": lambda r, alpha: mixture_parts(r, alpha)[0],
    "skew_reverse_kl": lambda r, alpha: mixture_parts(r, 1 - alpha)[1],
    "alpha_divergence": _alpha_divergence,
    "renyi": lambda r, alpha: (
        _forward_kl(r) if alpha == 1 else _log_affinity(r, alpha) / (alpha - 1)
    ),
    "bhattacharyya": lambda r: -_log_affinity(r, 0.5),
    "squared_hellinger": lambda r: 0.5 * ((np.exp(r.log_p / 2) - np.exp(r.log_q / 2)) ** 2).sum(-1),
    "pearson_chi_squared": lambda r: ((r.q - r.p) ** 2 / r.q).sum(-1),
    "neyman_chi_squared": lambda r: ((r.q - r.p) ** 2 / r.p).sum(-1),
    "negative_acceptance": lambda r: -np.minimum(r.p, r.q).sum(-1),
    "negative_log_acceptance": lambda r: -np.logaddexp.reduce(np.minimum(r.log_p, r.log_q), -1),
    "lk_hybrid": _lk_hybrid,
}
POPULAR = tuple(FORMULAS)[:6]
_CUSTOMARY = {  # factors by which textbooks differ
    "jeffreys": (0.5,),
    "jensen_shannon": (2.0,),
    "total_variation": (2.0,),
    "squared_hellinger": (2.0, 4.0),
    "pearson_chi_squared": (0.5,),
    "neyman_chi_squared": (0.5,),
}


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
        """The power of T that its formula lacks; a loss in parts has its own factors in them."""
        return 0 if self.entry.parts else self.entry.temperature_power

    @property
    def factors(self) -> tuple[float, ...]:
        """The factors that are as common as the registry's, which is the first."""
        return (1.0, *_CUSTOMARY.get(self.name, ()))

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
        """The parameters that a fit may change continuously: a head's share goes in steps."""
        return [key for key, p in self.entry.parameters.items() if not p.whole and key != "head"]

    def with_values(self, values: Mapping[str, float]) -> "Candidate":
        return replace(self, parameters=tuple((dict(self.parameters) | values).items()))

    def variants(self, classes: int) -> list["Candidate"]:
        """Returns the loss at other values of its parameters."""
        others = []
        for key, parameter in self.entry.parameters.items():
            if parameter.whole:
                grid = [k for k in _ANY_K if k < classes]
            elif math.isinf(parameter.high):
                grid = [parameter.low + step for step in (0.5, 1.0, 2.0, 5.0, 10.0)]
            else:
                grid = np.linspace(parameter.low, parameter.high, 11).round(6)
            allowed = (v for v in grid if parameter.allows(v) and v != parameter.default)
            others += [self.with_values({key: float(value)}) for value in allowed]
        return others

    @property
    def formula(self) -> Formula:
        form = functools.partial(FORMULAS[self.name], **dict(self.parameters))
        if self.at_temperature:
            return lambda r: form(r._replace(logits=r.log_q))
        return form


class Family(NamedTuple):
    """Losses of which one thing is the same: they are right, or wrong in one way.

    Attributes:
      formulas: from roles to values, by the loss that is meant.
      roles: from rows and the temperatures [n] of teacher and student to what is in the places.
      code: the code of a mistake, or empty.
      details: the mistake's.
    """

    formulas: Mapping[Candidate, Formula]
    roles: Callable[[ProbeRows, np.ndarray, np.ndarray], Roles] = right_roles
    code: str = ""
    details: Mapping[str, object] = MappingProxyType({})

    def columns(self, rows: ProbeRows, temperatures: np.ndarray) -> np.ndarray:
        """Returns values [losses, n, K] without the factor of T; temperatures are [2, n]."""
        shape = temperatures.shape[1], len(rows.labels)
        with np.errstate(all="ignore"):
            roles = self.roles(rows, *temperatures)
            columns = [np.broadcast_to(form(roles), shape) for form in self.formulas.values()]
        return np.stack(columns)


def right(losses: Iterable[Candidate]) -> Family:
    return Family({candidate: candidate.formula for candidate in losses})


def plain_candidates() -> list[Candidate]:
    """Returns every loss with its default parameters, the popular ones first."""
    return [Candidate(name, tuple(ENTRIES[name].defaults.items())) for name in FORMULAS]
