"""Losses as a re-implementation gets them wrong: logits [B, L, V] to one value a token, [B, L].

They are written as their authors write them, on probabilities and logarithms of whole logits: `kl`
is Σ p·log(p/q) and `ce` is -Σ p·log q in all of them. Reductions follow the losses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import jaxdiv

CE, KL = LOSSES = ("ce", "kl")
# (student_logits, teacher_logits, loss) -> one value a token.
Formula = Callable[[jax.Array, jax.Array, str], jax.Array]


def right(
    student: jax.Array,
    teacher: jax.Array,
    loss: str,
    *,
    temperature: float = 1.0,
    squared: bool = True,
) -> jax.Array:
    """Computes the registry's loss; at a temperature other than 1 with its factor T², or without
    (`squared=False`)."""
    factor = 1.0 if squared else temperature**-2
    return factor * jaxdiv.get(loss)(student, teacher, temperature=temperature)


def softmax_twice(student: jax.Array, teacher: jax.Array, loss: str) -> jax.Array:
    """Computes the loss with the student's probabilities in the place of its logits."""
    return jaxdiv.get(loss)(jax.nn.softmax(student), teacher)


def without_log(student: jax.Array, teacher: jax.Array, loss: str) -> jax.Array:
    """Computes the loss with the student's probabilities in the place of their logarithms."""
    p, log_p = jax.nn.softmax(teacher), jax.nn.log_softmax(teacher)
    return jnp.sum(p * (_entropy_term(loss, log_p) - jax.nn.softmax(student)), axis=-1)


def attached(student: jax.Array, teacher: jax.Array, loss: str) -> jax.Array:
    """Computes the right loss without stopping the teacher's gradient."""
    p, log_p = jax.nn.softmax(teacher), jax.nn.log_softmax(teacher)
    return jnp.sum(p * (_entropy_term(loss, log_p) - jax.nn.log_softmax(student)), axis=-1)


def arguments_swapped(student: jax.Array, teacher: jax.Array, loss: str) -> jax.Array:
    """Computes the loss with student and teacher exchanged; gradients still reach the student."""
    return attached(teacher, student, loss)


def in_float16(
    student: jax.Array,
    teacher: jax.Array,
    loss: str,
    *,
    scale: float = 1.0,
    log_of_softmax: bool = False,
) -> jax.Array:
    """Computes the loss with every step rounded to float16, in value and in gradient.

    The gradient is taken of `scale` times the loss, and divided by it where it leaves float16.
    `log_of_softmax` rounds q before its logarithm is taken.
    """
    log_p = half(jax.nn.log_softmax(half(teacher)))
    p, narrow = half(jnp.exp(log_p)), half(_divide_gradient(student, scale))
    log_q = half(
        jnp.log(half(jax.nn.softmax(narrow))) if log_of_softmax else jax.nn.log_softmax(narrow)
    )
    return half(jnp.sum(half(p * half(_entropy_term(loss, log_p) - log_q)), axis=-1))


def _entropy_term(loss, log_p):
    """Returns log p, which KL has and cross-entropy lacks; 0 for classes of probability 0."""
    return jnp.where(jnp.isneginf(log_p), 0.0, log_p) if loss == KL else 0.0


@jax.custom_vjp
def half(x: jax.Array) -> jax.Array:
    """Rounds x and its gradient to float16; both stay of x's type."""
    # Without the barrier compilers may leave the two casts out.
    return jax.lax.optimization_barrier(x.astype(jnp.float16)).astype(x.dtype)


half.defvjp(lambda x: (half(x), None), lambda _, g: (half(g),))


@jax.custom_vjp
def _divide_gradient(x, scale):
    """Returns x, whose gradient is divided by `scale`."""
    return x


_divide_gradient.defvjp(lambda x, scale: (x, scale), lambda scale, g: (g / scale, None))


# Reductions of a batch's values and weights, [B, L], to a scalar.


def mean(values: jax.Array, weights: jax.Array, _vocab_size: int = 0) -> jax.Array:
    return jnp.sum(values * weights) / jnp.sum(weights)


def mean_over_vocabulary(values: jax.Array, weights: jax.Array, vocab_size: int) -> jax.Array:
    """Computes PyTorch's `reduction="mean"` of terms [B, L, V]."""
    return mean(values, weights) / vocab_size


def mean_over_rows(values: jax.Array, weights: jax.Array, _vocab_size: int = 0) -> jax.Array:
    """Computes PyTorch's `reduction="batchmean"` of terms [B, L, V], which divides by the number of
    rows alone; rows without weight don't count."""
    return jnp.sum(values * weights) / jnp.sum(jnp.any(weights > 0, axis=1))


def total(values: jax.Array, weights: jax.Array, _vocab_size: int = 0) -> jax.Array:
    return jnp.sum(values * weights)


def mean_in_float16(
    values: jax.Array, weights: jax.Array, _vocab_size: int = 0, *, scale: float = 1.0
) -> jax.Array:
    """Computes `scale` times the mean, with its gradient rounded to float16."""
    return scale * half(half(jnp.sum(half(values * weights))) / jnp.sum(weights))
