"""From one value a position to one number: sums and counts that do not depend on how a batch was cut."""

import jax
import jax.numpy as jnp


def token_sum(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted sum and the weights' sum, to be added over micro-batches or devices before they are divided.

    A position of weight 0 counts nothing in value and gradient, even where its value is NaN or infinite.

    Args:
      values: [...] one value a position.
      weights: [...] of the same shape, >= 0; constants.

    Returns:
      (total, count), scalars of float32 at least.

    Raises:
      ValueError: if the shapes differ.
    """
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    if values.shape != weights.shape:
        raise ValueError(f"`weights` must have the values' shape {values.shape}, got {weights.shape}.")
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    weights = jax.lax.stop_gradient(weights).astype(dtype)
    kept = jnp.where(weights == 0, 0, values.astype(dtype))
    return jnp.sum(kept * weights), jnp.sum(weights)


def token_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean of `token_sum`; 0 with a gradient of 0 where every weight is 0.

    Args and Raises as in `token_sum`; returns a scalar of float32 at least.
    """
    total, count = token_sum(values, weights)
    return total / jnp.where(count == 0, 1, count)
