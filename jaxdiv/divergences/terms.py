"""Each f-divergence as its term φ(log p, log q): value, first and second derivative by log q.

Every term is gauge-fixed: a multiple of q - p has been added so that it is >= 0 and, the kink of
total variation aside, flat where student and teacher agree. r = log(q/p).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.divergences.rows import HUGE, Rows, expm1_series, near_or_far, polynomial, total

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


def _kl(p, q, r):
    """p(eʳ-1-r); away from 0 through the larger of p and q, so that nothing overflows and one rounding counts."""
    small = jnp.exp(-jnp.abs(r))
    above = q * (1 - small * (1 + jnp.minimum(r, HUGE)))
    below = jnp.maximum(p, _tiny(r)) * (small - 1 - r)
    return near_or_far(r, p * polynomial(_KL, r), jnp.where(r > 0, above, below))


def _jeffreys(rows):
    return jnp.maximum(jnp.abs(rows.excess), _tiny(rows.r)) * jnp.abs(rows.r)


def _total_variation(rows):
    return jnp.abs(0.5 * rows.excess)


def _balanced_sign(rows):
    """½q·sign(r) less the multiple of q that makes it sum to 0: a class of probability near 1 keeps its digits."""
    up = 0.5 + 0.5 * jnp.sign(rows.r)
    down = 1 - up
    return rows.q * (up * total(rows.q * down) - down * total(rows.q * up))


_KL = (0.0, 0.0, *expm1_series()[2:])

FORWARD_KL = Term(
    value=lambda rows: _kl(rows.p, rows.q, rows.r), slope=lambda rows: rows.excess, curvature=lambda rows: rows.q
)
REVERSE_KL = Term(
    value=lambda rows: _kl(rows.q, rows.p, -rows.r),
    slope=lambda rows: rows.q * _bounded(rows.r),
    curvature=lambda rows: rows.q * (1 + _bounded(rows.r)),
)
JEFFREYS = Term(
    value=_jeffreys,
    slope=lambda rows: rows.excess + rows.q * _bounded(rows.r),
    curvature=lambda rows: rows.q * (2 + _bounded(rows.r)),
)
TOTAL_VARIATION = Term(value=_total_variation, slope=_balanced_sign, curvature=_balanced_sign)


@functools.lru_cache
def jensen_shannon(beta: float = 0.5) -> Term:
    """βp·log(p/M) + (1-β)q·log(q/M), M = βp + (1-β)q."""
    ratio_series, value_series = _mixture_series(beta)

    def logs(r):
        """e^-|r|, log(M/p) and log(M/q) where |r| >= NEAR."""
        small = jnp.exp(-jnp.abs(r))
        fall = 1 - small
        rise = fall / jnp.maximum(small, _tiny(r))
        by_p = jnp.log1p((1 - beta) * jnp.where(r > 0, rise, -fall))
        by_q = jnp.log1p(beta * jnp.where(r > 0, -fall, rise))
        return small, by_p, by_q

    def value(rows):
        p, q, r, _ = rows
        small, by_p, by_q = logs(r)
        above = q * (beta * small * by_p + (1 - beta) * by_q)
        below = p * (beta * by_p + (1 - beta) * small * by_q)
        return near_or_far(r, p * polynomial(value_series, r), -jnp.where(r > 0, above, below))

    def slope(rows):
        log = near_or_far(rows.r, polynomial(ratio_series, rows.r), -logs(rows.r)[2])
        return (1 - beta) * rows.q * log

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
