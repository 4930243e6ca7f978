"""What turns logits into the distribution that is sampled from."""

import math

import jax
import jax.numpy as jnp


def probabilities(logits: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """The distribution that sampling at `temperature` draws from: softmax(logits / temperature).

    Args:
      logits: [..., V]; -inf is a class that does not exist.
      temperature: a number, fixed at trace time; 0 is greedy: one at the largest logit (the first of equals).

    Returns:
      [..., V], float32 at least, each row sums to 1.

    Raises:
      ValueError: the temperature is negative or not finite.
    """
    check_temperature(temperature)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    # The largest logit goes before the division: a tiny temperature overflows otherwise.
    return jax.nn.softmax((logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature, axis=-1)


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless `temperature` is finite and at least 0."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` must be finite and at least 0, got {temperature}; 0 is greedy.")
