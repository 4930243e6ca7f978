"""The terms φ(log p, log q) of the f-divergences, with two derivatives by log q.

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
    """The functions φ, dφ/db and d²φ/db² with b = log q, each from Rows to [..., V].

    `pointwise` is dφ/db of one class where `slope` depends on the whole row. `balanced` means that
    a row's slopes already sum to 0.
    """

    value: Elementwise
    slope: Elementwise
    curvature: Elementwise
    pointwise: Elementwise | None = None
    balanced: bool = False


def _tiny(r):
    return jnp.finfo(r.dtype).tiny


def _bounded(r):
    return jnp.clip(r, -HUGE, HUGE)


def _kl(p, q, r):
    """Returns p(eʳ-1-r); away from 0 by the larger of p and q, so that nothing overflows."""
    small = jnp.exp(-jnp.abs(r))
    above = q * (1 - small * (1 + jnp.minimum(r, HUGE)))
    below = jnp.maximum(p, _tiny(r)) * (small - 1 - r)
    return near_or_far(r, p * polynomial(_KL, r), jnp.where(r > 0, above, below))


def _balanced_sign(rows):
    """Returns ½q·sign(r) minus the multiple of q that makes it sum to 0.

    In this form a class of probability near 1 keeps its digits.
    """
    up = jnp.where(rows.r > 0, rows.q, jnp.where(rows.r < 0, 0, 0.5 * rows.q))
    down = rows.q - up
    return up * total(down) - down * total(up)


_KL = (0.0, 0.0, *expm1_series()[2:])

FORWARD_KL = Term(
    value=lambda rows: _kl(rows.p, rows.q, rows.r),
    slope=lambda rows: rows.excess,
    curvature=lambda rows: rows.q,
    balanced=True,
)
REVERSE_KL = Term(
    value=lambda rows: _kl(rows.q, rows.p, -rows.r),
    slope=lambda rows: rows.q * _bounded(rows.r),
    curvature=lambda rows: rows.q * (1 + _bounded(rows.r)),
)
JEFFREYS = Term(
    value=lambda rows: jnp.maximum(jnp.abs(rows.excess), _tiny(rows.r)) * jnp.abs(rows.r),
    slope=lambda rows: rows.excess + rows.q * _bounded(rows.r),
    curvature=lambda rows: rows.q * (2 + _bounded(rows.r)),
)
TOTAL_VARIATION = Term(
    value=lambda rows: jnp.abs(0.5 * rows.excess),
    slope=_balanced_sign,
    curvature=_balanced_sign,
    pointwise=lambda rows: 0.5 * rows.q * jnp.sign(rows.r),
    balanced=True,
)
_MOST = 80.0  # an exponent that does not overflow
_FAR = 1e4  # a log ratio beyond which a probability is 0


@functools.lru_cache
def alpha_divergence(alpha: float) -> Term:
    """Returns the term p[(1-α)(eʳ-1) - (e^((1-α)r)-1)]/(α(1-α)); at α = 0 and 1 the KLs."""
    if min(abs(alpha), abs(1 - alpha)) < 1e-12:
        return FORWARD_KL if alpha > 0.5 else REVERSE_KL
    series = tuple(
        0.0 if k < 2 else _geometric(1 - alpha, k - 1) / math.factorial(k) for k in range(40)
    )

    # One term in two forms, with p and q exchanged: each is exact where the other divides by a
    # number near 0.
    forward = alpha >= 0.5
    scale = 1 - alpha if forward else alpha

    def value(rows):
        positive, size = rows.r > 0, jnp.abs(rows.r)
        small, larger = jnp.exp(-size), jnp.where(positive, rows.q, rows.p)
        up = larger * (1 - small - small * _scaled_expm1(jnp.minimum(size, _FAR), scale))
        # e^(-scale·size) may overflow, or larger underflow, where their product does not.
        log_larger = jnp.where(positive, rows.log_q, rows.log_p)
        huge = jnp.exp(log_larger - scale * size) / -scale
        down = larger * (small - 1) + jnp.where(
            -scale * size > _MOST, huge, -larger * _scaled_expm1(-size, scale)
        )
        far = jnp.where(positive == forward, up, down) / (1 - scale)
        return near_or_far(rows.r, rows.p * polynomial(series, rows.r), far)

    def slope(rows):
        small = rows.q * _scaled_expm1(-rows.r, alpha)
        return -jnp.where(-alpha * rows.r > _MOST, power(rows, alpha) / alpha, small)

    def curvature(rows):
        return slope(rows) + power(rows, alpha)

    return Term(value=value, slope=slope, curvature=curvature)


def log_power(rows: Rows, alpha: float) -> jax.Array:
    """Returns log(p^α·q^(1-α)), [..., V], in [-inf, inf]."""
    # A class absent from the side whose power is above 0 counts nothing, whatever the other side.
    if alpha >= 0.5:
        return jnp.where(jnp.isneginf(rows.log_p), -jnp.inf, rows.log_p + (1 - alpha) * rows.r)
    return jnp.where(jnp.isneginf(rows.log_q), -jnp.inf, rows.log_q - alpha * rows.r)


def power(rows: Rows, alpha: float) -> jax.Array:
    """Returns p^α·q^(1-α), [..., V], clipped where the sum over the classes would overflow."""
    largest = math.log(float(jnp.finfo(rows.r.dtype).max) / rows.r.shape[-1]) - 1
    return jnp.exp(jnp.minimum(log_power(rows, alpha), largest))


def _geometric(x, count):
    """Sums 1 + x + ... + x^(count-1)."""
    return sum(x**k for k in range(count))


def _scaled_expm1(r, scale):
    return jnp.expm1(jnp.minimum(scale * r, _MOST)) / scale


def _times(factor, term):
    functions = {name: part for name, part in term._asdict().items() if callable(part)}
    return term._replace(
        **{name: lambda rows, part=part: factor * part(rows) for name, part in functions.items()}
    )


SQUARED_HELLINGER = _times(0.25, alpha_divergence(0.5))
PEARSON_CHI_SQUARED = _times(2.0, alpha_divergence(2.0))
NEYMAN_CHI_SQUARED = _times(2.0, alpha_divergence(-1.0))


@functools.lru_cache
def skew_kl(alpha: float) -> Term:
    """Returns the term p·log(p/M) + (1-α)(q-p), M = αp + (1-α)q."""
    divergence = _skew(alpha)

    def share(rows):
        """Returns (1-α)q/M."""
        mixture = alpha * rows.p + (1 - alpha) * rows.q
        return (1 - alpha) * rows.q / jnp.maximum(mixture, _tiny(rows.r))

    def slope(rows):
        return (1 - alpha) * share(rows) * rows.excess

    def curvature(rows):
        return slope(rows) + jnp.square(share(rows)) * rows.p

    return Term(
        value=lambda rows: divergence(rows.p, rows.q, rows.r)[0], slope=slope, curvature=curvature
    )


@functools.lru_cache
def skew_reverse_kl(alpha: float) -> Term:
    """Returns the term q·log(q/M) + (1-α)(p-q), M = αq + (1-α)p."""
    divergence = _skew(alpha)

    def ratios(rows):
        """Returns (1-α)p/M and (q-p)/M."""
        mixture = jnp.maximum(alpha * rows.q + (1 - alpha) * rows.p, _tiny(rows.r))
        return (1 - alpha) * rows.p / mixture, rows.excess / mixture

    def slope(rows):
        value, log = divergence(rows.q, rows.p, -rows.r)
        share, gap = ratios(rows)
        plain = -rows.q * (log + alpha * (1 - alpha) * gap)
        if alpha <= _SKEWED:
            return plain
        change = _far_change(alpha, -rows.r)
        return near_or_far(change, value + (1 - alpha) * share * rows.excess, plain)

    def curvature(rows):
        return slope(rows) + rows.q * jnp.square(ratios(rows)[0])

    return Term(
        value=lambda rows: divergence(rows.q, rows.p, -rows.r)[0], slope=slope, curvature=curvature
    )


def _skew(alpha: float) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the function (p, q, r) -> (p·(x - log(1+x)), log(1+x)) with x = (1-α)(eʳ-1)."""
    log_series, value_series = _log_mixture_series(alpha), _skew_series(alpha)

    def value_and_log(p, q, r):
        small = jnp.exp(-jnp.abs(r))
        log = _far_log_mixture(alpha, r)
        above = q * ((1 - alpha) * (1 - small) - small * log)
        below = p * ((1 - alpha) * (small - 1) - log)
        far = jnp.where(r > 0, above, below)
        if alpha > _SKEWED:
            change = _far_change(alpha, r)
            far = near_or_far(
                change, jnp.where(r > 0, q * small, p) * polynomial(_LESS_LOG1P, change), far
            )
        value = near_or_far(r, p * polynomial(value_series, r), far)
        return value, near_or_far(r, polynomial(log_series, r), log)

    return value_and_log


# Above this α, x is small and x - log(1+x) cancels even at large log ratios.
_SKEWED = 0.75
_LESS_LOG1P = (0.0, 0.0, *((-1) ** k / k for k in range(2, 64)))  # x - log(1+x)


def _skew_series(alpha):
    """Returns the power series in r of x - log(1+x), whose derivative is x times the logistic
    function of `_logistic_series`."""
    count = len(expm1_series())
    product = (1 - alpha) * np.convolve(expm1_series(), _logistic_series(alpha))[:count]
    return (0.0, *(product[:-1] / np.arange(1, len(product))).tolist())


@functools.lru_cache
def jensen_shannon(beta: float) -> Term:
    """Returns the term βp·log(p/M) + (1-β)q·log(q/M), M = βp + (1-β)q."""
    by_p_series, by_q_series = _log_mixture_series(beta), _log_mixture_series(1 - beta)
    value_series = _jensen_shannon_series(beta, by_p_series)

    def value(rows):
        p, q, r = rows.p, rows.q, rows.r
        small = jnp.exp(-jnp.abs(r))
        by_p, by_q = _far_log_mixture(beta, r), _far_log_mixture(1 - beta, -r)
        above = q * (beta * small * by_p + (1 - beta) * by_q)
        below = p * (beta * by_p + (1 - beta) * small * by_q)
        return near_or_far(r, p * polynomial(value_series, r), -jnp.where(r > 0, above, below))

    def slope(rows):
        by_q = near_or_far(
            rows.r, polynomial(by_q_series, -rows.r), _far_log_mixture(1 - beta, -rows.r)
        )
        return -(1 - beta) * rows.q * by_q

    def curvature(rows):
        mixture = jnp.maximum(beta * rows.p + (1 - beta) * rows.q, _tiny(rows.r))
        return slope(rows) + (1 - beta) * rows.q * beta * rows.p / mixture

    return Term(value=value, slope=slope, curvature=curvature)


def _jensen_shannon_series(beta, by_p):
    """Returns the power series in r of the whole term over p, from that of log(M/p)."""
    by_p = np.array(by_p)
    log_ratio = -by_p  # log(q/M) = r - log(M/p)
    log_ratio[1] = beta
    exp = np.array([1 / math.factorial(k) for k in range(len(by_p))])
    whole = (1 - beta) * np.convolve(exp, log_ratio)[: len(exp)] - beta * by_p
    whole[:2] = 0
    return tuple(whole.tolist())


def _far_change(weight, r):
    """Returns (1-w)(eʳ-1) where |r| >= NEAR."""
    small = jnp.exp(-jnp.abs(r))
    return (1 - weight) * jnp.where(r > 0, (1 - small) / jnp.maximum(small, _tiny(r)), small - 1)


def _far_log_mixture(weight, r):
    """Returns log(w + (1-w)eʳ) where |r| >= NEAR."""
    change = _far_change(weight, r)
    direct = jnp.log(weight + (1 - weight) * jnp.exp(-jnp.abs(r)))
    return jnp.where(change < -0.5, direct, jnp.log1p(change))


def _log_mixture_series(weight):
    """Returns the power series in r of log(w + (1-w)eʳ)."""
    logistic = _logistic_series(weight)
    return (0.0, *(logistic[:-1] / np.arange(1, len(logistic))).tolist())


@functools.lru_cache
def _logistic_series(weight, count=40):
    """Returns the power series in r of (1-w)eʳ/(w + (1-w)eʳ), which solves s' = s(1 - s)."""
    logistic = np.zeros(count)
    logistic[0] = 1 - weight
    for k in range(count - 1):
        logistic[k + 1] = (logistic[k] - logistic[: k + 1] @ logistic[k::-1]) / (k + 1)
    return logistic
