"""Cross-entropies with one class a row: the teacher's most probable, or a label of the data."""

import jax
import jax.numpy as jnp

from jaxdiv.divergences.blocks import in_blocks
from jaxdiv.divergences.inputs import classes_last, prepare
from jaxdiv.divergences.regularizers import smoothed
from jaxdiv.divergences.rows import along, softmax, top, total


@in_blocks
def cross_entropy_argmax(
    student_logits, teacher_logits, *, smoothing: float = 0.0, axis: int = -1, where=None
) -> jax.Array:
    """Computes -log q of the teacher's most probable class (the first of equals), nats a row.

    For greedy drafts of an independent decoder, which then match a greedy target more often, while
    sampled drafts are accepted less. In [0, inf]. Arguments and errors as in `cross_entropy`.

    Source: the hard-label limit of Hinton et al., arXiv 1503.02531, section 2.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return smoothed(_hard(student, _first_largest(teacher)), student, smoothing)


@in_blocks
def cross_entropy_data(
    student_logits, labels, *, smoothing: float = 0.0, axis: int = -1, where=None
) -> jax.Array:
    """Computes -log q of the label, nats a row: plain next-token training, which needs no teacher.

    Args:
      student_logits: [..., V], any float type; computed in float32 at least.
      labels: [...] integers in [0, V); a label outside gives NaN.
      smoothing: ε in [0, 1), the share of the label that is spread equally over existing classes.
      axis: the axis of the classes.
      where: classes that exist, broadcast to the logits.

    Returns:
      [...] in [0, inf]; inf if the label's class does not exist.

    Raises:
      ValueError: if the labels are no integers or do not fit the rows.

    Source: maximum likelihood of the next token. Smoothing: Szegedy et al., arXiv 1512.00567,
      section 7.
    """
    student_logits, labels = jnp.asarray(student_logits), jnp.asarray(labels)
    dtype = jnp.promote_types(student_logits.dtype, jnp.float32)
    student = classes_last(student_logits, dtype=dtype, axis=axis, where=where)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"`labels` must be integers, got {labels.dtype}; for soft targets use cross_entropy."
        )
    if labels.shape != student.shape[:-1]:
        raise ValueError(
            f"`labels` must have the rows' shape {student.shape[:-1]}, got {labels.shape}."
        )
    return smoothed(_hard(student, labels), student, smoothing)


def _first_largest(logits):
    """Computes argmax as two plain reductions, faster on CPU; V where a logit is NaN."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == largest, _classes(logits), logits.shape[-1]), axis=-1)


def _classes(logits):
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


@jax.custom_jvp
def _hard(student, labels):
    exp, chosen = _exp_and_chosen(student, labels)
    ahead = total(jnp.where(chosen, student, 0)) - top(student)
    rest = total(jnp.where(chosen, 0, exp))
    # log1p keeps the digits of a label that is nearly certain.
    value = jnp.where(
        ahead == 0, jnp.log1p(rest), jnp.log(jnp.maximum(rest + jnp.exp(ahead), 1)) - ahead
    )
    exists = (labels >= 0) & (labels < student.shape[-1])
    return jnp.where(exists, value[..., 0], jnp.nan)


def _exp_and_chosen(student, labels):
    chosen = _classes(student) == labels[..., None]
    return jnp.exp(student - top(student)), chosen


@_hard.defjvp
def _hard_jvp(primals, tangents):
    return _hard(*primals), along(_hard_gradient(*primals), tangents[0])


@jax.custom_jvp
def _hard_gradient(student, labels):
    exp, chosen = _exp_and_chosen(student, labels)
    rest = total(jnp.where(chosen, 0, exp))
    return jnp.where(chosen, -rest, exp) / jnp.maximum(rest + total(jnp.where(chosen, exp, 0)), 1)


@_hard_gradient.defjvp
def _hard_gradient_jvp(primals, tangents):
    return _hard_gradient(*primals), jax.jvp(softmax, primals[:1], tangents[:1])[1]
