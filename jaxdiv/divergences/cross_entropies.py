"""Cross-entropies with a soft teacher, over all classes or the most probable ones."""

import functools

import jax
import jax.numpy as jnp

from jaxdiv.divergences.blocks import in_blocks
from jaxdiv.divergences.inputs import prepare
from jaxdiv.divergences.regularizers import smoothed
from jaxdiv.divergences.rows import along, softmax, top, total

CLASSES = 10


@in_blocks
def cross_entropy(
    student_logits, teacher_logits, *, smoothing: float = 0.0, axis: int = -1, where=None
) -> jax.Array:
    """Computes the cross-entropy -Σ p·log q, nats a row, by its own plain formula.

    The loss that everybody has. Its gradient, q - p, is that of forward KL: for a fixed teacher the
    two differ by a constant, the teacher's entropy. Other arguments and errors as in `forward_kl`.

    Args:
      smoothing: ε in [0, 1), the share of p that is spread equally over the student's classes.

    Returns:
      [...] in [0, inf]; inf where the student lacks a class that the teacher has.

    Source: Hinton et al., arXiv 1503.02531, section 2; Kangaroo, arXiv 2404.18911. Smoothing: arXiv
      1512.00567.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return smoothed(_soft(student, teacher), student, smoothing)


@in_blocks
def cross_entropy_top_k(
    student_logits, teacher_logits, *, k: int = CLASSES, axis: int = -1, where=None
) -> jax.Array:
    """Computes -Σ p·log q over the teacher's k most probable classes, nats a row.

    It adds weight on likely tokens to another loss (`ce + ce_top_k(k=10)`), and so p is not
    renormalized; alone it is lowest where the student puts nothing outside the k classes, not where
    q = p. Classes as probable as the k-th count too. Other arguments as in `forward_kl`.

    Args:
      k: number of classes, 1 to V.

    Returns:
      [...] in [0, inf].

    Raises:
      ValueError: if `k` is no whole number from 1 to V.

    Source: HASS, arXiv 2408.15766, section 3.1, with k = 10.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    classes = teacher.shape[-1]
    if not (1 <= k <= classes and k == int(k)):
        raise ValueError(
            f"`k` of `ce_top_k` must be a whole number from 1 to the {classes} classes, got {k}; "
            f"such as `ce_top_k(k={classes})`."
        )
    return _soft_top_k(int(k), student, teacher)


def _log_sum(exp):
    """Returns log Σexp, [..., 1], of numbers whose largest is 1, precise even where the sum is.

    XLA may round the logits differently for the maximum and for the exponential, so that the
    largest number is not 1 to the last digit.
    """
    high = exp >= 0.5
    return jnp.log1p(jnp.maximum(total(exp - high) + (total(high.astype(exp.dtype)) - 1), 0))


def cross_entropy_terms(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns -p·log q of prepared logits, [..., V]; 0 for a class that the teacher lacks."""
    shifted = student - top(student)
    surprise = _log_sum(jnp.exp(shifted)) - shifted
    p = softmax(teacher)
    return jnp.where(jnp.isneginf(teacher), 0, jnp.maximum(p, jnp.finfo(p.dtype).tiny) * surprise)


@jax.custom_jvp
def _soft(student, teacher):
    return total(cross_entropy_terms(student, teacher))[..., 0]


@_soft.defjvp
def _soft_jvp(primals, tangents):
    return _soft(*primals), along(cross_entropy_gradient(*primals), tangents[0])


def cross_entropy_gradient(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns q - p of prepared logits, [..., V]."""
    return softmax(student) - jax.lax.stop_gradient(softmax(teacher))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _soft_top_k(k, student, teacher):
    every = cross_entropy_terms(student, teacher)
    return jnp.sum(jnp.where(_is_top_k(teacher, k), every, 0), axis=-1)


@_soft_top_k.defjvp
def _soft_top_k_jvp(k, primals, tangents):
    student, teacher = primals
    p = jax.lax.stop_gradient(jnp.where(_is_top_k(teacher, k), softmax(teacher), 0))
    slope = softmax(student) * total(p) - p
    return _soft_top_k(k, *primals), along(slope, tangents[0])


def _is_top_k(logits, k):
    return logits >= jax.lax.top_k(logits, k)[0][..., -1:]
