"""Each f-divergence as its term φ(log p, log q): value, first and second derivative by log q.

Every term is in the gauge that design needs: a multiple of q - p has been added so that it is >= 0 and, the kink of
total variation aside, flat where student and teacher agree. r = log(q/p).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.divergences.rows import HUGE, Rows, expm1_series, near_or_far, polynomial

Elementwise = Callable[[Rows], jax.Array]


class Term(NamedTuple):
    """φ, dφ/db and d²φ/db², each from Rows to [..., V]."""

    value: Elementwise
    slope: Elementwise
    curvature: Elementwise


def _tiny(r):
    return jnp.finfo(r.dtype).tiny


def _bounded(r):
    return jnp.clip(r, -HUGE, HUGE)


def _forward_kl(rows):
    p, q, r, _ = rows
    far = q - p - jnp.maximum(p, _tiny(r)) * jnp.minimum(r, HUGE)
    return near_or_far(r, p * polynomial(_KL, r), far)


def _reverse_kl(rows):
    p, q, r, _ = rows
    far = p - q + jnp.maximum(q, _tiny(r)) * jnp.maximum(r, -HUGE)
    return near_or_far(r, p * polynomial(_REVERSE, r), far)


def _jeffreys(rows):
    return jnp.maximum(jnp.abs(rows.excess), _tiny(rows.r)) * jnp.abs(rows.r)


def _half_sign(rows):
    return 0.5 * rows.q * jnp.sign(rows.r)


_KL = (0.0, 0.0, *expm1_series()[2:])
_REVERSE = tuple(max(k - 1, 0) / math.factorial(k) for k in range(22))

FORWARD_KL = Term(value=_forward_kl, slope=lambda rows: rows.excess, curvature=lambda rows: rows.q)
REVERSE_KL = Term(
    value=_reverse_kl,
    slope=lambda rows: rows.q * _bounded(rows.r),
    curvature=lambda rows: rows.q * (1 + _bounded(rows.r)),
)
JEFFREYS = Term(
    value=_jeffreys,
    slope=lambda rows: rows.excess + rows.q * _bounded(rows.r),
    curvature=lambda rows: rows.q * (2 + _bounded(rows.r)),
)
TOTAL_VARIATION = Term(value=lambda rows: 0.5 * jnp.abs(rows.excess), slope=_half_sign, curvature=_half_sign)


@functools.lru_cache
def jensen_shannon(beta: float) -> Term:
    """βp·log(p/M) + (1-β)q·log(q/M), M = βp + (1-β)q."""
    ratio, value_series = _mixture_series(beta)

    def logs(rows):
        """log(M/p) and log(M/q) where |r| >= NEAR, through the smaller of the two ratios."""
        r = _bounded(rows.r)
        small = jnp.minimum(rows.p, rows.q) / jnp.maximum(jnp.maximum(rows.p, rows.q), _tiny(r))
        log = jnp.log1p(-jnp.where(r > 0, beta, 1 - beta) * (1 - small))
        return log + jnp.maximum(r, 0), log - jnp.minimum(r, 0)

    def value(rows):
        by_p, by_q = logs(rows)
        far = -beta * rows.p * by_p - (1 - beta) * rows.q * by_q
        return near_or_far(rows.r, rows.p * polynomial(value_series, rows.r), far)

    def slope(rows):
        far = -logs(rows)[1]
        return (1 - beta) * rows.q * near_or_far(rows.r, polynomial(ratio, rows.r), far)

    def curvature(rows):
        mixture = beta * rows.p + (1 - beta) * rows.q
        return slope(rows) + (1 - beta) * rows.q * beta * rows.p / jnp.maximum(mixture, _tiny(rows.r))

    return Term(value=value, slope=slope, curvature=curvature)


def _mixture_series(beta, count=40):
    """Power series in r of log(q/M) and of the whole term over p.

    log(M/p) = log(β + (1-β)eʳ) has the logistic function as its derivative, which solves s' = s(1 - s).
    """
    logistic = np.zeros(count)
    logistic[0] = 1 - beta
    for k in range(count - 1):
        logistic[k + 1] = (logistic[k] - logistic[: k + 1] @ logistic[k::-1]) / (k + 1)
    log_mixture = np.append(0.0, logistic[:-1] / np.arange(1, count))
    log_ratio = -log_mixture
    log_ratio[1] = beta
    exp = np.array([1 / math.factorial(k) for k in range(count)])
    whole = (1 - beta) * np.convolve(exp, log_ratio)[:count] - beta * log_mixture
    whole[:2] = 0
    return tuple(log_ratio.tolist()), tuple(whole.tolist())
