"""Reductions from one value a position to one number that don't depend on micro-batches."""

import jax
import jax.numpy as jnp


def token_sum(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums weighted values, and weights; add both over micro-batches or devices, then divide.

    A position of weight 0 counts nothing in value and gradient, even if its value is NaN or
    infinite.

    Args:
      values: [...], one value a position.
      weights: [...] of the same shape, >= 0; constants.

    Returns:
      (total, count), scalars of float32 at least.

    Raises:
      ValueError: if the shapes differ.
    """
    products, weights = _weighted(values, weights)
    return jnp.sum(products), jnp.sum(weights)


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
    """Returns the weighted mean, a scalar; 0 with a gradient of 0 if every weight is 0.

    Arguments and errors as in `token_sum`.
    """
    return mean(*token_sum(values, weights))


def sequence_sum(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums the weighted means of sequences, so that a short text counts as much as a long one.

    Args:
      values: [..., L], one value a position, sequences along the last axis.
      weights: [..., L], >= 0; constants.

    Returns:
      (total, number of sequences that have a weight), scalars of float32 at least; add both over
      micro-batches or devices.

    Raises:
      ValueError: if the shapes differ.
    """
    products, weights = _weighted(values, weights)
    counts = jnp.sum(weights, axis=-1)
    means = mean(jnp.sum(products, axis=-1), counts)
    return jnp.sum(means), jnp.sum((counts > 0).astype(counts.dtype))


def sequence_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the mean over sequences; 0 with a gradient of 0 if every weight is 0."""
    return mean(*sequence_sum(values, weights))


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Divides total by count; 0 where count is 0."""
    return total / jnp.where(count == 0, 1, count)


def position_weights(length: int, decay: float) -> jax.Array:
    """Returns decayⁱ for positions i = 0, 1, ... of a draft, [length] float32.

    An early rejection costs all drafts after it. Multiply a batch's weights [..., length] by this
    before the reduction.

    Raises:
      ValueError: if `length` is below 1 or `decay` not in (0, 1].

    Source: EAGLE's training code, 0.8ⁱ by draft step.
    """
    if length < 1 or not 0 < decay <= 1:
        raise ValueError(
            f"`length` must be 1 or more and `decay` in (0, 1], got {length} and {decay}."
        )
    return jnp.float32(decay) ** jnp.arange(length, dtype=jnp.float32)
