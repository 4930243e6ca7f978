"""Terms of the student alone: the uniform part of label smoothing, and the z-loss."""

import jax
import jax.numpy as jnp

from jaxdiv.divergences.inputs import classes_last
from jaxdiv.divergences.rows import along, log_normalizer, log_probabilities, softmax, total


def z_loss(student_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes (log Σ exp z)² of the student's logits z, one value a row.

    It keeps the normalizer, which no divergence sees, near 1, so that logits do not drift. Write it
    in a sum such as `ce + 1e-4*z_loss`; it stays at T = 1 under a distillation temperature.

    Args:
      student_logits: [..., V], any float type; computed in float32 at least.
      axis: the axis of the classes.
      where: classes that exist, broadcast to the logits.

    Returns:
      [...] in [0, inf]; 0 for a row without classes.

    Source: PaLM, arXiv 2204.02311, section 5, with a weight of 1e-4.
    """
    student_logits = jnp.asarray(student_logits)
    dtype = jnp.promote_types(student_logits.dtype, jnp.float32)
    student = classes_last(student_logits, dtype=dtype, axis=axis, where=where)
    return _squared_normalizer(student)


@jax.custom_jvp
def _squared_normalizer(student):
    return jnp.square(log_normalizer(student))[..., 0]


@_squared_normalizer.defjvp
def _squared_normalizer_jvp(primals, tangents):
    (student,) = primals
    slope = 2 * log_normalizer(student) * softmax(student)
    return _squared_normalizer(student), along(slope, tangents[0])


def smoothed(loss: jax.Array, student: jax.Array, smoothing: float) -> jax.Array:
    """Computes (1-ε)·loss + ε·(the cross-entropy with equal labels on the student's classes).

    Args:
      loss: [...], a cross-entropy.
      student: [..., V], prepared logits.
      smoothing: ε in [0, 1).

    Raises:
      ValueError: if `smoothing` is not in [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` must be in [0, 1), got {smoothing}.")
    return loss if smoothing == 0 else (1 - smoothing) * loss + smoothing * _uniform(student)


@jax.custom_jvp
def _uniform(student):
    terms = _equal_labels(student) * log_probabilities(student)
    return -jnp.sum(jnp.where(jnp.isneginf(student), 0, terms), axis=-1)


def _equal_labels(student):
    present = ~jnp.isneginf(student)
    return present / jnp.maximum(total(present.astype(student.dtype)), 1)


@_uniform.defjvp
def _uniform_jvp(primals, tangents):
    (student,) = primals
    slope = softmax(student) - _equal_labels(student)
    return _uniform(student), along(slope, tangents[0])
