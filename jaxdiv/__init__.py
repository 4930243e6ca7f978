"""Divergence losses for the draft models of speculative decoding.

Every loss takes `(student_logits, teacher_logits, *, axis=-1, where=None)`, student first, and gives one value a row.
`jaxdiv.get("0.7*kl + 0.3*tv")` turns text into a loss. Needs JAX alone.
"""

from jaxdiv import reductions
from jaxdiv.contributions import contributions
from jaxdiv.divergences import (
    Loss,
    alpha_divergence,
    cross_entropy,
    cross_entropy_argmax,
    cross_entropy_data,
    forward_kl,
    get,
    jeffreys,
    jensen_shannon,
    lk_hybrid,
    names,
    negative_log_acceptance,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    split,
    squared_hellinger,
    total_variation,
)

__version__ = "0.1.0"

__all__ = [
    "Loss",
    "alpha_divergence",
    "contributions",
    "cross_entropy",
    "cross_entropy_argmax",
    "cross_entropy_data",
    "forward_kl",
    "get",
    "jeffreys",
    "jensen_shannon",
    "lk_hybrid",
    "names",
    "negative_log_acceptance",
    "reductions",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "split",
    "squared_hellinger",
    "total_variation",
]
