"""Probabilities and log ratios of two rows of logits, each to nearly full relative precision."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

NEAR = 0.5  # below this |r| a term is its power series, above it the direct form
HUGE = 1e18  # stands for an infinite r where it meets a probability of 0


class Rows(NamedTuple):
    """Teacher p, student q, r = log(q/p) and excess = q - p, each [..., V].

    `log_p` and `log_q` serve where p and q underflow; they are -inf for an absent class.
    """

    p: jax.Array
    q: jax.Array
    r: jax.Array
    excess: jax.Array
    log_p: jax.Array
    log_q: jax.Array


def compare(student: jax.Array, teacher: jax.Array) -> Rows:
    """Compares float logits [..., V]; a logit of -inf is a class that does not exist.

    The log ratio is never the difference of two rounded log-probabilities. It is the difference of
    the logits minus a rounded normalizer; Σp·expm1(r), which should be 0, corrects it once more.
    """
    top_s, top_t = top(student), top(teacher)
    below_s, below_t = student - top_s, teacher - top_t
    exp_s, exp_t = jnp.exp(below_s), jnp.exp(below_t)
    # The top class counts 1, so that a smaller sum means a row without classes.
    sum_s, sum_t = jnp.maximum(total(exp_s), 1), jnp.maximum(total(exp_t), 1)
    log_sum_s, log_sum_t = jnp.log(sum_s), jnp.log(sum_t)
    (gap, error), (gap_top, error_top) = _difference(student, teacher), _difference(top_s, top_t)
    shift, error_shift = _difference(gap_top, log_sum_t - log_sum_s)
    gap = (gap - shift) + (error - (error_top + error_shift))

    p, q = exp_t / sum_t, exp_s / sum_s
    residual = total(_excess(p, q, gap))
    # Rounding alone makes the residual; the clip is for rows without classes.
    r = gap - jnp.log1p(jnp.clip(residual, -0.5, 0.5))
    return Rows(
        p=p, q=q, r=r, excess=_excess(p, q, r), log_p=below_t - log_sum_t, log_q=below_s - log_sum_s
    )


def _difference(a, b):
    """Returns a - b and its rounding error (Knuth's two-sum); (0, 0) for -inf on both sides."""
    gap = a - b
    back = gap - a
    error = (a - (gap - back)) - (b + back)
    absent = jnp.isneginf(a) & jnp.isneginf(b)
    return jnp.where(absent, 0, gap), jnp.where(jnp.isfinite(error), error, 0)


def _excess(p, q, r):
    return near_or_far(r, p * polynomial(expm1_series(), r), q - p)


def near_or_far(r: jax.Array, near: jax.Array, far: jax.Array) -> jax.Array:
    """Chooses `near` where |r| < NEAR, else `far`."""
    return jnp.where(jnp.abs(r) < NEAR, near, far)


def top(logits: jax.Array) -> jax.Array:
    """Returns the largest logit [..., 1], or 0 for a row of -inf."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(jnp.isneginf(largest), 0, largest)


def total(values: jax.Array) -> jax.Array:
    """Sums over the classes, [..., 1]."""
    return jnp.sum(values, axis=-1, keepdims=True)


def polynomial(series: tuple[float, ...], r: jax.Array) -> jax.Array:
    """Evaluates Σ series[k]·r^k for |r| < NEAR by Horner, up to terms that rounding hides."""
    series = _significant(series, float(jnp.finfo(r.dtype).eps))
    value = jnp.full_like(r, series[-1])
    for coefficient in reversed(series[:-1]):
        value = value * r + coefficient
    return value


@functools.lru_cache
def _significant(series, eps):
    size = [abs(c) * NEAR**k for k, c in enumerate(series)]
    lead = next((s for s in size if s), 1)
    return series[: 1 + max((k for k, s in enumerate(size) if s > lead * eps / 16), default=0)]


@functools.lru_cache
def expm1_series() -> tuple[float, ...]:
    """Returns the Taylor coefficients of expm1."""
    return (0.0, *(1 / math.factorial(k) for k in range(1, 22)))


def weighted(weight: jax.Array, value: jax.Array) -> jax.Array:
    """Multiplies value and constant weight; a weight of 0 gives 0 even beside an infinite value."""
    without = (weight == 0) | jnp.isnan(weight)
    return jnp.where(without, weight, weight * jnp.where(without, 0, value))


def along(slope: jax.Array, tangent: jax.Array) -> jax.Array:
    """Sums slope·tangent over the classes, [...]; a slope of NaN counts 0.

    A row of NaN may have no weight, and must then spoil no other row's gradient.
    """
    return jnp.sum(jnp.where(jnp.isnan(slope), 0, slope) * tangent, axis=-1)


def log_probabilities(logits: jax.Array) -> jax.Array:
    """Subtracts the log-sum-exp from logits [..., V]."""
    shifted = logits - top(logits)
    return shifted - jnp.log(jnp.maximum(total(jnp.exp(shifted)), 1))


@jax.custom_jvp
def softmax(logits: jax.Array) -> jax.Array:
    """Returns the probabilities [..., V] of logits [..., V]; all 0 for a row of -inf."""
    exp = jnp.exp(logits - top(logits))
    return exp / jnp.maximum(total(exp), 1)


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    q = softmax(*primals)
    return q, q * (tangents[0] - total(q * tangents[0]))


@jax.custom_jvp
def log_normalizer(logits: jax.Array) -> jax.Array:
    """Returns the log-sum-exp [..., 1] of logits [..., V]; 0 for a row of -inf."""
    largest = top(logits)
    return largest + jnp.log(jnp.maximum(total(jnp.exp(logits - largest)), 1))


@log_normalizer.defjvp
def _log_normalizer_jvp(primals, tangents):
    return log_normalizer(*primals), total(softmax(*primals) * tangents[0])
