"""Divergences of a student's logits from a teacher's: functions, and the registry that finds them by name."""

from jaxdiv.divergences.acceptance import lk_hybrid, negative_log_acceptance
from jaxdiv.divergences.cross_entropies import cross_entropy, cross_entropy_argmax, cross_entropy_data
from jaxdiv.divergences.f_divergences import (
    alpha_divergence,
    forward_kl,
    jeffreys,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    squared_hellinger,
    total_variation,
)
from jaxdiv.divergences.loss import Loss, get, split
from jaxdiv.divergences.registry import names

__all__ = [
    "Loss",
    "alpha_divergence",
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
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "split",
    "squared_hellinger",
    "total_variation",
]
