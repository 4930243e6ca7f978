"""From one value a position to one number: sums and counts that do not depend on how a batch was
cut."""

import jax
import jax.numpy as jnp


def token_sum(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted sum and the weights' sum, to be added over micro-batches or devices before they are
    divided.

    A position of weight 0 counts nothing in value and gradient, even where its value is NaN or
    infinite.

    Args:
      values: [...] one value a position.
      weights: [...] of the same shape, >= 0; constants.

    Returns:
      (total, count), scalars of float32 at least.

    Raises:
      ValueError: if the shapes differ.
    """
    kept, weights = _weighted(values, weights)
    return jnp.sum(kept), jnp.sum(weights)


def _weighted(values, weights):
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    if values.shape != weights.shape:
        raise ValueError(
            f"`weights` must have the values' shape {values.shape}, got {weights.shape}."
        )
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    weights = jax.lax.stop_gradient(weights).astype(dtype)
    return jnp.where(weights == 0, 0, values.astype(dtype)) * weights, weights


def token_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean of `token_sum`; 0 with a gradient of 0 where every weight is 0.

    Args and Raises as in `token_sum`; returns a scalar of float32 at least.
    """
    return mean(*token_sum(values, weights))


def sequence_sum(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of each sequence's own weighted mean, and how many sequences have a weight: a short text
    counts as a long.

    Args:
      values: [..., L], one value a position, sequences along the last axis.
      weights: [..., L], >= 0; constants.

    Returns:
      (total, count), scalars of float32 at least, to be added over micro-batches or devices.

    Raises:
      ValueError: if the shapes differ.
    """
    kept, weights = _weighted(values, weights)
    counts = jnp.sum(weights, axis=-1)
    return jnp.sum(mean(jnp.sum(kept, axis=-1), counts)), jnp.sum((counts > 0).astype(counts.dtype))


def sequence_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over sequences of `sequence_sum`; 0 with a gradient of 0 where every weight is 0."""
    return mean(*sequence_sum(values, weights))


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """total / count; 0 where count is 0."""
    return total / jnp.where(count == 0, 1, count)


def position_weights(length: int, decay: float) -> jax.Array:
    """decayⁱ for positions i = 0, 1, ... of a draft, [length] float32: an early rejection costs all
    that follow it.

    Multiply a batch's weights [..., length] by it before they go to a sum.

    Raises:
      ValueError: if `length` is below 1 or `decay` not in (0, 1].

    Source: EAGLE's training code, 0.8ⁱ by draft step.
    """
    if length < 1 or not 0 < decay <= 1:
        raise ValueError(
            f"`length` must be 1 or more and `decay` in (0, 1], got {length} and {decay}."
        )
    return jnp.float32(decay) ** jnp.arange(length, dtype=jnp.float32)
