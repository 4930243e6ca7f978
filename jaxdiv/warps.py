"""What turns logits into the distribution that is sampled from: temperature, then top-k, then
top-p.

Target and draft must be warped alike. Temperatures and cut-offs may be numbers, fixed at trace
time, or arrays of one value a row, so that the sequences of a batch are each decoded in their own
way.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Warp(NamedTuple):
    """How a distribution is sampled; each a number, or an array that broadcasts to the rows [...].

    Attributes:
      temperature: 0 is greedy.
      top_k: only the k likeliest classes, and those equal to the last of them; None for all.
      top_p: only the likeliest classes whose masses add up to p, the one that crosses it included,
        and those equal to the last of them (arXiv 1904.09751, section 3.1); None for all.
    """

    temperature: jax.Array | float = 1.0
    top_k: jax.Array | int | None = None
    top_p: jax.Array | float | None = None


def warp(logits: jax.Array, how: Warp) -> jax.Array:
    """Logits of the distribution that is sampled from, [..., V], float32 at least; -inf for a class
    left out.

    Args:
      logits: [..., V]; -inf is a class that does not exist.
      how: its arrays broadcast to [...].
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    temperature = _a_row(how.temperature, logits)
    greedy = temperature == 0
    # The largest logit goes before the division: a tiny temperature overflows otherwise.
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.where(greedy, 1, temperature)
    if how.top_k is not None or how.top_p is not None:
        scaled = jnp.where(scaled >= _smallest_kept(scaled, how), scaled, -jnp.inf)
    first = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    first = first == jnp.argmax(logits, axis=-1, keepdims=True)
    return jnp.where(greedy, jnp.where(first, 0, -jnp.inf), scaled)


def _smallest_kept(scaled, how):
    falling = jnp.flip(jnp.sort(scaled, axis=-1), axis=-1)
    ranks = jax.lax.broadcasted_iota(jnp.int32, scaled.shape, scaled.ndim - 1)
    kept = ranks >= 0
    if how.top_k is not None:
        kept &= ranks < _a_row(how.top_k, scaled)
    if how.top_p is not None:
        masses = jax.nn.softmax(jnp.where(kept, falling, -jnp.inf), axis=-1)
        before = jnp.cumsum(masses, axis=-1) - masses
        # At p = 1 nothing is left out, not even what rounding puts beyond it.
        kept &= (before < _a_row(how.top_p, scaled)) | (_a_row(how.top_p, scaled) == 1)
    # The likeliest stays, however small the mass: 1e-50 is 0 in float32.
    last = jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True) - 1, 0)
    return jnp.take_along_axis(falling, last, axis=-1)


def _a_row(value, logits):
    """The number, or the values with an axis for the classes."""
    value = jnp.asarray(value)
    return jnp.broadcast_to(value, logits.shape[:-1])[..., None]


def probabilities(logits: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """The distribution that sampling at `temperature` draws from: softmax(logits / temperature).

    Args:
      logits: [..., V]; -inf is a class that does not exist.
      temperature: a number, fixed at trace time; 0 is greedy: one at the largest logit (the first
        of equals).

    Returns:
      [..., V], float32 at least, each row sums to 1.

    Raises:
      ValueError: the temperature is negative or not finite.
    """
    check_temperature(temperature)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    return jax.nn.softmax(warp(logits, Warp(temperature)), axis=-1)


def draw(key: jax.Array, warped: jax.Array) -> jax.Array:
    """One class of warped logits [V], by the Gumbel-max trick: int32 scalar."""
    return jnp.argmax(warped + noise(key, warped), axis=-1).astype(jnp.int32)


def noise(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Gumbel's, of the shape of `logits`: the order of logits plus noise samples without
    replacement."""
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
