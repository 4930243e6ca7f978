"""Two rows of logits as the numbers that every divergence is made of, each to nearly full relative precision."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

NEAR = 0.5  # below this |r| a term is its power series, above it the direct form
HUGE = 1e18  # stands for an infinite r where it meets a probability of 0


class Rows(NamedTuple):
    """Teacher p, student q, r = log(q/p) and excess = q - p, each [..., V]."""

    p: jax.Array
    q: jax.Array
    r: jax.Array
    excess: jax.Array


def compare(student: jax.Array, teacher: jax.Array) -> Rows:
    """Probabilities and log ratio of float logits [..., V]; -inf is a class that does not exist.

    The log ratio is never the difference of two rounded log-probabilities: it is the difference of the logits less
    a rounded normalizer, and what Σp·expm1(r) then lacks to 0 is taken off once more.
    """
    p, q, gap = _softmaxes(student, teacher)
    excess = _excess(p, q, gap)
    r = gap - jnp.log1p(total(excess))
    return Rows(p=p, q=q, r=r, excess=_excess(p, q, r))


def _softmaxes(student, teacher):
    top_s, top_t = top(student), top(teacher)
    exp_s, exp_t = jnp.exp(student - top_s), jnp.exp(teacher - top_t)
    # The top class counts 1, so that a smaller sum means a row without classes.
    sum_s, sum_t = jnp.maximum(total(exp_s), 1), jnp.maximum(total(exp_t), 1)
    (gap, lost), (gap_top, lost_top) = _difference(student, teacher), _difference(top_s, top_t)
    shift, lost_shift = _difference(gap_top, jnp.log(sum_t) - jnp.log(sum_s))
    return exp_t / sum_t, exp_s / sum_s, (gap - shift) + (lost - (lost_top + lost_shift))


def _difference(a, b):
    """a - b as it rounds and what the rounding lost (Knuth's two-sum); (0, 0) for -inf on both sides."""
    gap = a - b
    back = gap - a
    lost = (a - (gap - back)) - (b + back)
    absent = jnp.isneginf(a) & jnp.isneginf(b)
    return jnp.where(absent, 0, gap), jnp.where(jnp.isfinite(lost), lost, 0)


def _excess(p, q, r):
    return near_or_far(r, p * polynomial(expm1_series(), r), q - p)


def near_or_far(r: jax.Array, near: jax.Array, far: jax.Array) -> jax.Array:
    """`near` where |r| < NEAR, else `far`."""
    return jnp.where(jnp.abs(r) < NEAR, near, far)


def top(logits: jax.Array) -> jax.Array:
    """The largest logit [..., 1]; 0 for a row of -inf."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(jnp.isneginf(largest), 0, largest)


def total(values: jax.Array) -> jax.Array:
    """Sum over the classes, [..., 1]."""
    return jnp.sum(values, axis=-1, keepdims=True)


def polynomial(series: tuple[float, ...], r: jax.Array) -> jax.Array:
    """Σ series[k]·r^k for |r| < NEAR, by Horner, as far as the precision of `r` can tell."""
    series = _significant(series, float(jnp.finfo(r.dtype).eps))
    value = jnp.full_like(r, series[-1])
    for coefficient in reversed(series[:-1]):
        value = value * r + coefficient
    return value


@functools.lru_cache
def _significant(series, eps):
    size = [abs(c) * NEAR**k for k, c in enumerate(series)]
    lead = next(s for s in size if s)
    return series[: 1 + max(k for k, s in enumerate(size) if s > lead * eps / 16)]


@functools.lru_cache
def expm1_series() -> tuple[float, ...]:
    """Of expm1(r)."""
    return (0.0, *(1 / math.factorial(k) for k in range(1, 22)))


def log_probabilities(logits: jax.Array) -> jax.Array:
    """Logits less their log-sum-exp, [..., V]."""
    shifted = logits - top(logits)
    return shifted - jnp.log(jnp.maximum(total(jnp.exp(shifted)), 1))
