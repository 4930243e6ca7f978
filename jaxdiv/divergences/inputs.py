"""Logits in one form: classes last, float32 at least, absent classes -inf."""

import jax
import jax.numpy as jnp


def prepare(student_logits, teacher_logits, *, axis: int, where) -> tuple[jax.Array, jax.Array]:
    """Returns student and (constant) teacher logits [..., V] of one shape and type.

    Raises:
      ValueError: if the shapes do not fit.
    """
    student_logits, teacher_logits = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    if student_logits.ndim == 0 or teacher_logits.ndim == 0:
        raise ValueError("logits need an axis of classes, got a scalar.")
    if student_logits.shape[axis] != teacher_logits.shape[axis]:
        raise ValueError(
            f"student and teacher must have the same classes, got {student_logits.shape[axis]} and "
            f"{teacher_logits.shape[axis]} on axis {axis}; cut both to the common vocabulary, as "
            "`vocab_size` does."
        )
    both = jnp.promote_types(student_logits.dtype, teacher_logits.dtype)
    shared = {"dtype": jnp.promote_types(both, jnp.float32), "axis": axis, "where": where}
    student = classes_last(student_logits, **shared)
    teacher = classes_last(jax.lax.stop_gradient(teacher_logits), **shared)
    shape = jnp.broadcast_shapes(student.shape, teacher.shape)
    return _spread(student, shape), _spread(teacher, shape)


def cut(logits, vocab_size: int | None, axis: int) -> jax.Array:
    """Returns the first `vocab_size` classes of logits, without the padding of a vocabulary.

    Raises:
      ValueError: if the logits have fewer classes.
    """
    logits = jnp.asarray(logits)
    if vocab_size is None:
        return logits
    if logits.ndim == 0 or not 1 <= vocab_size <= logits.shape[axis]:
        raise ValueError(
            f"`vocab_size` {vocab_size} must be from 1 to the classes of logits {logits.shape}."
        )
    return jax.lax.slice_in_dim(logits, 0, vocab_size, axis=axis)


def classes_last(logits, *, dtype, axis: int, where) -> jax.Array:
    """Returns logits [..., V] of `dtype`, -inf where `where` is False.

    Raises:
      ValueError: if `where` does not broadcast to the logits.
    """
    logits = jnp.asarray(logits).astype(dtype)
    if where is not None:
        where = jnp.asarray(where, dtype=bool)
        try:
            shape = jnp.broadcast_shapes(logits.shape, where.shape)
        except ValueError:
            raise ValueError(
                f"`where` must broadcast to the logits {logits.shape}, got {where.shape}."
            ) from None
        logits = jnp.where(_spread(where, shape), _spread(logits, shape), -jnp.inf)
    return jnp.moveaxis(logits, axis, -1)


def _spread(array, shape):
    return array if array.shape == shape else jnp.broadcast_to(array, shape)
