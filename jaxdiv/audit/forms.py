"""Losses as authors write them, from probabilities and log-probabilities that may be wrong, in
float64 NumPy.

The registry's own functions take logits and normalize them, so that they can't show what a missing
log or softmax does. A registry entry without a form here is still identified, through its own
function.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Roles(NamedTuple):
    """What a formula is made of: teacher p, student q, their logarithms and heated logits [..., V];
    labels [...]."""

    p: np.ndarray
    q: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    labels: np.ndarray

    def spread(self, shape: tuple[int, ...]) -> "Roles":
        """Every role as [*shape, its classes]."""
        logits = [np.broadcast_to(role, (*shape, role.shape[-1])) for role in self[:-1]]
        return Roles(*logits, np.broadcast_to(self.labels, shape))


Form = Callable[..., np.ndarray]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def clean_roles(student, teacher, labels) -> Roles:
    """The right roles of (heated) logits [..., V]."""
    log_q, log_p = log_softmax(student), log_softmax(teacher)
    return Roles(np.exp(log_p), np.exp(log_q), log_p, log_q, teacher, student, labels)


def _kl(a, log_a, log_b):
    return (a * (log_a - log_b)).sum(-1)


def _pick(values, index):
    return np.take_along_axis(
        values,
        np.broadcast_to(np.minimum(index, values.shape[-1] - 1), values.shape[:-1])[..., None],
        -1,
    )[..., 0]


def _smoothed(loss, r, smoothing):
    return (1 - smoothing) * loss - smoothing * r.log_q.mean(-1)


def _cross_entropy(r, smoothing=0.0):
    return _smoothed(-(r.p * r.log_q).sum(-1), r, smoothing)


def _cross_entropy_argmax(r, smoothing=0.0):
    return _smoothed(-_pick(r.log_q, r.p.argmax(-1)), r, smoothing)


def _cross_entropy_data(r, smoothing=0.0):
    return _smoothed(-_pick(r.log_q, r.labels), r, smoothing)


def _cross_entropy_top_k(r, k=10):
    least = -np.sort(-r.p, axis=-1)[..., min(int(k), r.p.shape[-1]) - 1, None]
    return -np.where(r.p >= least, r.p * r.log_q, 0).sum(-1)


def _z_loss(r):
    return np.log(np.exp(r.student).sum(-1)) ** 2


def _forward_kl(r):
    return _kl(r.p, r.log_p, r.log_q)


def _reverse_kl(r):
    return _kl(r.q, r.log_q, r.log_p)


def _adaptive_kl(r, head=0.5):
    falling = -np.sort(-r.p, axis=-1)
    inside = np.cumsum(falling, axis=-1) <= head
    inside[..., 0] = True
    least = np.where(inside, falling, np.inf).min(-1, keepdims=True)
    gap = np.abs(r.q - r.p)
    share = np.where(r.p >= least, gap, 0).sum(-1) / gap.sum(-1)
    return share * _forward_kl(r) + (1 - share) * _reverse_kl(r)


def _to_mixture(r, beta):
    log_m = np.log(beta * r.p + (1 - beta) * r.q)
    return _kl(r.p, r.log_p, log_m), _kl(r.q, r.log_q, log_m)


def _from_mixture(r, beta):
    m = beta * r.p + (1 - beta) * r.q
    return _kl(m, np.log(m), r.log_p), _kl(m, np.log(m), r.log_q)


def _jensen_shannon(r, beta=0.5):
    by_p, by_q = _to_mixture(r, beta)
    return beta * by_p + (1 - beta) * by_q


def _alpha_divergence(r, alpha=0.5):
    if alpha in (0, 1):
        return _forward_kl(r) if alpha else _reverse_kl(r)
    return (1 - (r.p**alpha * r.q ** (1 - alpha)).sum(-1)) / (alpha * (1 - alpha))


def _renyi(r, alpha=0.5):
    if alpha == 1:
        return _forward_kl(r)
    return np.log((r.p**alpha * r.q ** (1 - alpha)).sum(-1)) / (alpha - 1)


def _total_variation(r):
    return 0.5 * np.abs(r.p - r.q).sum(-1)


def _acceptance(r):
    return np.minimum(r.p, r.q).sum(-1)


def _lk_hybrid_parts(r, rate=3.0):
    weight = np.exp(-rate * _acceptance(r))
    return weight * _forward_kl(r), (1 - weight) * _total_variation(r)


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "cross_entropy": _cross_entropy,
        "cross_entropy_argmax": _cross_entropy_argmax,
        "cross_entropy_data": _cross_entropy_data,
        "cross_entropy_top_k": _cross_entropy_top_k,
        "z_loss": _z_loss,
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "jeffreys": lambda r: _forward_kl(r) + _reverse_kl(r),
        "adaptive_kl": _adaptive_kl,
        "jensen_shannon": _jensen_shannon,
        "reverse_jensen_shannon": lambda r, beta=0.5: _jensen_shannon(r, 1 - beta),
        "skew_kl": lambda r, alpha=0.1: _to_mixture(r, alpha)[0],
        "skew_reverse_kl": lambda r, alpha=0.1: _to_mixture(r, 1 - alpha)[1],
        "alpha_divergence": _alpha_divergence,
        "renyi": _renyi,
        "bhattacharyya": lambda r: _renyi(r) / 2,
        "squared_hellinger": lambda r: 0.5 * ((np.sqrt(r.p) - np.sqrt(r.q)) ** 2).sum(-1),
        "pearson_chi_squared": lambda r: ((r.q - r.p) ** 2 / r.q).sum(-1),
        "neyman_chi_squared": lambda r: ((r.q - r.p) ** 2 / r.p).sum(-1),
        "total_variation": _total_variation,
        "negative_acceptance": lambda r: -_acceptance(r),
        "negative_log_acceptance": lambda r: -np.log(_acceptance(r)),
        "lk_hybrid": lambda r, rate=3.0: sum(_lk_hybrid_parts(r, rate)),
    }
)

PARTS: Mapping[str, Callable[..., tuple[np.ndarray, ...]]] = MappingProxyType(
    {"lk_hybrid": _lk_hybrid_parts}
)


class Other(NamedTuple):
    """A form that is not on the menu: what it is, the code of its finding, and the menu's loss that
    was meant.

    One that is `established`, a loss by its own right, is never taken for a mistake in another.
    What is not `heated` takes the logits themselves, where a temperature is no more than a factor.
    """

    form: Form
    text: str
    code: str
    meant: str | None
    grid: tuple[float, ...] = ()
    established: bool = False
    heated: bool = True


_GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def _entropy(log):
    return -(np.exp(log) * log).sum(-1)


def _cosine(a, b):
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _of_logits(form, text):
    return Other(form, text, "not_on_menu", None, established=True, heated=False)


OTHERS: tuple[Other, ...] = (
    Other(
        lambda r: -(r.q * r.log_p).sum(-1), "-Σ q·log p", "student_entropy_dropped", "reverse_kl"
    ),
    Other(
        lambda r: np.abs(r.p * (r.log_p - r.log_q)).sum(-1),
        "Σ p·|log p/q|",
        "absolute_terms",
        "forward_kl",
    ),
    Other(
        lambda r: np.abs(r.q * (r.log_p - r.log_q)).sum(-1),
        "Σ q·|log q/p|",
        "absolute_terms",
        "reverse_kl",
    ),
    Other(
        lambda r: ((r.p - r.q) ** 2).sum(-1),
        "Σ (q-p)², the Brier score",
        "not_on_menu",
        None,
        established=True,
    ),
    _of_logits(
        lambda r: ((r.student - r.teacher) ** 2).sum(-1), "the squared difference of logits"
    ),
    _of_logits(
        lambda r: np.abs(r.student - r.teacher).sum(-1), "the absolute difference of logits"
    ),
    _of_logits(lambda r: 1 - _cosine(r.student, r.teacher), "1 less the cosine of the logits"),
    _of_logits(lambda r: -(r.student * r.teacher).sum(-1), "the product of the logits"),
    Other(lambda r: np.abs(r.log_p - r.log_q).sum(-1), "Σ |log q - log p|", "not_on_menu", None),
    Other(lambda r: ((r.log_p - r.log_q) ** 2).sum(-1), "Σ (log q - log p)²", "not_on_menu", None),
    Other(
        lambda r: (r.p * (r.log_p - r.log_q) ** 2).sum(-1),
        "Σ p·(log q - log p)²",
        "not_on_menu",
        None,
    ),
    Other(
        lambda r: (r.q * (r.log_p - r.log_q) ** 2).sum(-1),
        "Σ q·(log q - log p)²",
        "not_on_menu",
        None,
    ),
    Other(lambda r: -(r.p * r.q).sum(-1), "-Σ p·q", "not_on_menu", None),
    Other(lambda r: -np.log((r.p * r.q).sum(-1)), "-log Σ p·q", "not_on_menu", None),
    Other(lambda r: -_entropy(r.log_q), "the student's negative entropy", "not_on_menu", None),
    Other(
        lambda r, beta: _from_mixture(r, beta)[0],
        "KL(M‖p)",
        "jsd_direction",
        "jensen_shannon",
        _GRID,
    ),
    Other(
        lambda r, beta: _from_mixture(r, beta)[1],
        "KL(M‖q)",
        "jsd_direction",
        "jensen_shannon",
        _GRID,
    ),
)
