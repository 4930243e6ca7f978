"""Losses as they go wrong in a re-implementation, [B, L, V] logits of both sides to one value a
token, [B, L].

They are written as their authors write them, on probabilities and logarithms of whole logits: `kl`
  stands for
Σ p·log(p/q) and `ce` for -Σ p·log q in all of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import jaxdiv

CE, KL = LOSSES = ("ce", "kl")
Formula = Callable[[jax.Array, jax.Array], jax.Array]


def right(loss: str, *, temperature: float = 1.0, squared: bool = True) -> Formula:
    """The loss of the menu; at a temperature other than 1 with its factor T², or without."""
    factor = 1.0 if squared else temperature**-2

    def formula(student, teacher):
        return factor * jaxdiv.get(loss)(student, teacher, temperature=temperature)

    return formula


def softmax_twice(loss: str) -> Formula:
    """The student's probabilities are handed over as if they were logits."""
    return lambda student, teacher: jaxdiv.get(loss)(jax.nn.softmax(student), teacher)


def without_log(loss: str) -> Formula:
    """The student's probabilities are handed over as if they were logarithms."""

    def formula(student, teacher):
        p, log_p, q = jax.nn.softmax(teacher), jax.nn.log_softmax(teacher), jax.nn.softmax(student)
        return jnp.sum(p * (_entropy_part(loss, log_p) - q), axis=-1)

    return formula


def arguments_swapped(loss: str) -> Formula:
    """Student and teacher in each other's place; the gradient goes to the student none the less."""

    def formula(student, teacher):
        q, log_q, log_p = (
            jax.nn.softmax(student),
            jax.nn.log_softmax(student),
            jax.nn.log_softmax(teacher),
        )
        return jnp.sum(q * (_entropy_part(loss, log_q) - log_p), axis=-1)

    return formula


def attached(loss: str) -> Formula:
    """The right formula, through which a gradient reaches the teacher too."""

    def formula(student, teacher):
        p, log_p = jax.nn.softmax(teacher), jax.nn.log_softmax(teacher)
        return jnp.sum(p * (_entropy_part(loss, log_p) - jax.nn.log_softmax(student)), axis=-1)

    return formula


def in_float16(loss: str, *, scale: float = 1.0, log_of_softmax: bool = False) -> Formula:
    """Every step rounded to float16, in value and in gradient.

    Args:
      loss: ce or kl.
      scale: of the loss before the gradient is taken, undone where it leaves float16.
      log_of_softmax: whether q is rounded before its logarithm is taken.
    """

    def formula(student, teacher):
        log_p = half(jax.nn.log_softmax(half(teacher)))
        p = half(jnp.exp(log_p))
        narrow = half(_unscaled(student, scale))
        log_q = half(
            jnp.log(half(jax.nn.softmax(narrow))) if log_of_softmax else jax.nn.log_softmax(narrow)
        )
        terms = half(p * half(_entropy_part(loss, log_p) - log_q))
        return half(jnp.sum(terms, axis=-1))

    return formula


def _entropy_part(loss, log_p):
    """What KL has before the student's logarithm, and cross-entropy has not; what has no chance
    adds nothing."""
    return jnp.where(jnp.isneginf(log_p), 0.0, log_p) if loss == KL else 0.0


@jax.custom_vjp
def half(x: jax.Array) -> jax.Array:
    """x and its gradient, rounded to float16 where compilers can't leave it out; still of x's
    type."""
    return _rounded(x)


def _rounded(x):
    return jax.lax.optimization_barrier(x.astype(jnp.float16)).astype(x.dtype)


half.defvjp(lambda x: (_rounded(x), None), lambda _, g: (_rounded(g),))


@jax.custom_vjp
def _unscaled(x, scale):
    """x, whose gradient is divided by `scale`."""
    return x


_unscaled.defvjp(lambda x, scale: (x, scale), lambda scale, g: (g / scale, None))


# Means over the tokens of a batch, [B, L] values and weights to a scalar.


def mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.sum(weights)


def mean_over_vocabulary(values: jax.Array, weights: jax.Array, vocab_size: int) -> jax.Array:
    """PyTorch's `reduction="mean"` of terms [B, L, V]."""
    return mean(values, weights) / vocab_size


def mean_over_rows(values: jax.Array, weights: jax.Array) -> jax.Array:
    """PyTorch's `reduction="batchmean"` of terms [B, L, V]: the first axis alone is counted, where
    it has weight."""
    return jnp.sum(values * weights) / jnp.sum(jnp.any(weights > 0, axis=1))


def total(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights)


def mean_in_float16(values: jax.Array, weights: jax.Array, scale: float) -> jax.Array:
    """`scale` times the mean, whose gradient is rounded."""
    return scale * half(half(jnp.sum(half(values * weights))) / jnp.sum(weights))
