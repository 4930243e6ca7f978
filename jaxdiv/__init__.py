"""Divergence losses for the draft models of speculative decoding.

Every loss takes `(student_logits, teacher_logits, *, axis=-1, where=None)`, student first, and
gives one value a row. `jaxdiv.get("0.7*kl + 0.3*tv")` turns text into a loss. Needs JAX alone.
"""

import importlib
from typing import Any

from jaxdiv import fused, reductions, targets
from jaxdiv.contributions import contributions, shares, top_movers
from jaxdiv.divergences import (
    Loss,
    adaptive_kl,
    alpha_divergence,
    bhattacharyya,
    cross_entropy,
    cross_entropy_argmax,
    cross_entropy_data,
    cross_entropy_top_k,
    forward_kl,
    get,
    jeffreys,
    jensen_shannon,
    lk_hybrid,
    names,
    negative_acceptance,
    negative_log_acceptance,
    neyman_chi_squared,
    pearson_chi_squared,
    renyi,
    reverse_jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    split,
    squared_hellinger,
    total_variation,
    z_loss,
)
from jaxdiv.fused import linear_divergence, linear_divergences

__version__ = "0.1.0"

__all__ = [
    "Loss",
    "adaptive_kl",
    "alpha_divergence",
    "audit",
    "bhattacharyya",
    "contributions",
    "cross_entropy",
    "cross_entropy_argmax",
    "cross_entropy_data",
    "cross_entropy_top_k",
    "forward_kl",
    "fused",
    "get",
    "jeffreys",
    "jensen_shannon",
    "linear_divergence",
    "linear_divergences",
    "lk_hybrid",
    "names",
    "negative_acceptance",
    "negative_log_acceptance",
    "neyman_chi_squared",
    "pearson_chi_squared",
    "reductions",
    "renyi",
    "reverse_jensen_shannon",
    "reverse_kl",
    "shares",
    "skew_kl",
    "skew_reverse_kl",
    "split",
    "squared_hellinger",
    "targets",
    "top_movers",
    "total_variation",
    "z_loss",
]


def __getattr__(name: str) -> Any:
    """Loads the audit when it is first used: no training needs it, nor SciPy."""
    if name == "audit":
        return importlib.import_module("jaxdiv.audit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
