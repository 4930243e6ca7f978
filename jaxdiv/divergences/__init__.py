"""Divergences between a student's and a teacher's logits, as functions and by name."""

from jaxdiv.divergences.acceptance import lk_hybrid, negative_acceptance, negative_log_acceptance
from jaxdiv.divergences.adaptive import adaptive_kl
from jaxdiv.divergences.cross_entropies import cross_entropy, cross_entropy_top_k
from jaxdiv.divergences.f_divergences import (
    alpha_divergence,
    forward_kl,
    jeffreys,
    jensen_shannon,
    neyman_chi_squared,
    pearson_chi_squared,
    reverse_jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    squared_hellinger,
    total_variation,
)
from jaxdiv.divergences.hard_labels import cross_entropy_argmax, cross_entropy_data
from jaxdiv.divergences.loss import Loss, get, mirror, split
from jaxdiv.divergences.registry import names
from jaxdiv.divergences.regularizers import z_loss
from jaxdiv.divergences.renyi import bhattacharyya, renyi

__all__ = [
    "Loss", "adaptive_kl", "alpha_divergence", "bhattacharyya", "cross_entropy",
    "cross_entropy_argmax", "cross_entropy_data", "cross_entropy_top_k", "forward_kl", "get",
    "jeffreys", "jensen_shannon", "lk_hybrid", "mirror", "names", "negative_acceptance",
    "negative_log_acceptance", "neyman_chi_squared", "pearson_chi_squared", "renyi",
    "reverse_jensen_shannon", "reverse_kl", "skew_kl", "skew_reverse_kl", "split",
    "squared_hellinger", "total_variation", "z_loss",
]  # fmt: skip
