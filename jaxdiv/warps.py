"""Warps from logits to the distribution to sample from: temperature, then top-k, then top-p.

Target and draft must be warped alike. Temperatures and cut-offs may be numbers, fixed at trace
time, or arrays of one value a row, so that each sequence of a batch has its own.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Warp(NamedTuple):
    """Settings of sampling, each a number or an array that broadcasts to the rows [...].

    Attributes:
      temperature: divisor of the logits; 0 is greedy.
      top_k: number of likeliest classes that remain, with ties of the last; None for all.
      top_p: mass of likeliest classes that remain, with the class that crosses it and its ties
        (arXiv 1904.09751, section 3.1); None for all.
    """

    temperature: jax.Array | float = 1.0
    top_k: jax.Array | int | None = None
    top_p: jax.Array | float | None = None


def warp(logits: jax.Array, how: Warp) -> jax.Array:
    """Returns logits [..., V] of the distribution to sample from, float32 at least.

    Args:
      logits: [..., V]; -inf is a class that does not exist.
      how: settings that broadcast to [...]. Classes that they exclude become -inf.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    temperature = _a_row(how.temperature, logits)
    greedy = temperature == 0
    # Subtract the largest logit before the division: a tiny temperature overflows otherwise.
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.where(greedy, 1, temperature)
    if how.top_k is not None or how.top_p is not None:
        scaled = jnp.where(scaled >= _threshold(scaled, how), scaled, -jnp.inf)
    first = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    first = first == jnp.argmax(logits, axis=-1, keepdims=True)
    return jnp.where(greedy, jnp.where(first, 0, -jnp.inf), scaled)


def _threshold(scaled: jax.Array, how: Warp) -> jax.Array:
    """Returns the smallest logit [..., 1] that top-k and top-p let remain of [..., V]."""
    falling = jnp.flip(jnp.sort(scaled, axis=-1), axis=-1)
    ranks = jax.lax.broadcasted_iota(jnp.int32, scaled.shape, scaled.ndim - 1)
    inside = ranks >= 0
    if how.top_k is not None:
        inside &= ranks < _a_row(how.top_k, scaled)
    if how.top_p is not None:
        masses = jax.nn.softmax(jnp.where(inside, falling, -jnp.inf), axis=-1)
        before = jnp.cumsum(masses, axis=-1) - masses
        # At p = 1 every class remains, even one that rounding puts beyond 1.
        inside &= (before < _a_row(how.top_p, scaled)) | (_a_row(how.top_p, scaled) == 1)
    # The likeliest class remains at any top_p: 1e-50 is 0 in float32.
    last = jnp.maximum(jnp.sum(inside, axis=-1, keepdims=True) - 1, 0)
    return jnp.take_along_axis(falling, last, axis=-1)


def _a_row(value, logits):
    """Broadcasts a number or values [...] to [..., 1]."""
    value = jnp.asarray(value)
    return jnp.broadcast_to(value, logits.shape[:-1])[..., None]


def probabilities(logits: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """Computes the distribution of sampling at a temperature: softmax(logits / temperature).

    Args:
      logits: [..., V]; -inf is a class that does not exist.
      temperature: a number, fixed at trace time; 0 is greedy, all mass on the largest logit (the
        first of equals).

    Returns:
      [..., V], float32 at least; each row sums to 1.

    Raises:
      ValueError: if the temperature is negative or not finite.
    """
    check_temperature(temperature)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    return jax.nn.softmax(warp(logits, Warp(temperature)), axis=-1)


def draw(key: jax.Array, warped: jax.Array) -> jax.Array:
    """Draws one class from warped logits [V] by the Gumbel-max trick, an int32 scalar."""
    return jnp.argmax(warped + noise(key, warped), axis=-1).astype(jnp.int32)


def noise(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws Gumbel noise like `logits`; the order of their sum samples without replacement."""
    return jax.random.gumbel(key, logits.shape, jnp.float32)


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless `temperature` is finite and at least 0."""
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"`temperature` must be finite and at least 0, got {temperature}; 0 is greedy."
        )


def check_cuts(top_k: int | None, top_p: float | None) -> None:
    """Raises ValueError unless `top_k` is at least 1 and `top_p` in (0, 1], or None."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}; None keeps all.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be in (0, 1], got {top_p}; None keeps all.")
