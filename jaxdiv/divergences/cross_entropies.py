"""Cross-entropies of the student with a soft teacher, the teacher's top class, or labels."""

import jax
import jax.numpy as jnp

from jaxdiv.divergences.inputs import classes_last, prepare
from jaxdiv.divergences.rows import top, total


def cross_entropy(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """-Σ p·log q, nats a row, its own plain formula; arguments and errors as in `forward_kl`.

    Its gradient, q - p, is that of forward KL: the two differ by the teacher's entropy.

    Returns:
      [...] in [0, inf]; inf where the student lacks a class that the teacher has.

    Source: Hinton et al., arXiv 1503.02531, section 2; Kangaroo, arXiv 2404.18911.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _soft(student, teacher)


def cross_entropy_argmax(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """-log q of the teacher's most probable class (the first, if several), nats a row.

    Arguments and errors as in `forward_kl`; [...] in [0, inf].

    Source: the hard-label limit of Hinton et al., arXiv 1503.02531, section 2.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _hard(student, _first_largest(teacher))


def cross_entropy_data(student_logits, labels, *, axis: int = -1, where=None) -> jax.Array:
    """-log q of the label, nats a row.

    Args:
      student_logits: [..., V], any float type; computed in float32 at least.
      labels: [...] integers in [0, V); a label outside gives NaN.
      axis: the classes.
      where: classes that exist, broadcast to the logits.

    Returns:
      [...] in [0, inf]; inf if the label's class does not exist.

    Raises:
      ValueError: if the labels are no integers or do not fit the rows.

    Source: maximum likelihood of the next token.
    """
    student_logits, labels = jnp.asarray(student_logits), jnp.asarray(labels)
    dtype = jnp.promote_types(student_logits.dtype, jnp.float32)
    student = classes_last(student_logits, dtype=dtype, axis=axis, where=where)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"`labels` must be integers, got {labels.dtype}; for soft targets use cross_entropy.")
    if labels.shape != student.shape[:-1]:
        raise ValueError(f"`labels` must have the rows' shape {student.shape[:-1]}, got {labels.shape}.")
    return _hard(student, labels)


def _softmax(logits):
    exp = jnp.exp(logits - top(logits))
    return exp / jnp.maximum(total(exp), 1)


def _log_sum(exp):
    """log Σexp, [..., 1], of numbers whose largest is 1, with all digits where that one is nearly alone."""
    rest = total(jnp.where(exp < 1, exp, 0))
    ones = jnp.round(total(exp) - rest)
    return jnp.log1p(rest + jnp.maximum(ones - 1, 0))


def cross_entropy_terms(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """-p·log q of prepared logits, [..., V]; 0 for a class that the teacher lacks."""
    shifted = student - top(student)
    surprise = _log_sum(jnp.exp(shifted)) - shifted
    p = _softmax(teacher)
    return jnp.where(jnp.isneginf(teacher), 0, jnp.maximum(p, jnp.finfo(p.dtype).tiny) * surprise)


@jax.custom_jvp
def _soft(student, teacher):
    return total(cross_entropy_terms(student, teacher))[..., 0]


@_soft.defjvp
def _soft_jvp(primals, tangents):
    return _soft(*primals), jnp.sum(cross_entropy_gradient(*primals) * tangents[0], axis=-1)


@jax.custom_jvp
def cross_entropy_gradient(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """q - p of prepared logits, [..., V]."""
    return _softmax(student) - _softmax(teacher)


@cross_entropy_gradient.defjvp
def _cross_entropy_gradient_jvp(primals, tangents):
    return cross_entropy_gradient(*primals), _fisher(primals[0], tangents[0])


def _fisher(student, tangent):
    """(diag(q) - qqᵀ)·tangent: the Hessian product of every cross-entropy."""
    q = _softmax(student)
    return q * (tangent - total(q * tangent))


def _first_largest(logits):
    """jnp.argmax, which is slow on CPU, as two plain reductions; V where a logit is NaN."""
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
    value = jnp.where(ahead == 0, jnp.log1p(rest), jnp.log(jnp.maximum(rest + jnp.exp(ahead), 1)) - ahead)
    known = (labels >= 0) & (labels < student.shape[-1])
    return jnp.where(known, value[..., 0], jnp.nan)


def _exp_and_chosen(student, labels):
    chosen = _classes(student) == labels[..., None]
    return jnp.exp(student - top(student)), chosen


@_hard.defjvp
def _hard_jvp(primals, tangents):
    return _hard(*primals), jnp.sum(_hard_gradient(*primals) * tangents[0], axis=-1)


@jax.custom_jvp
def _hard_gradient(student, labels):
    exp, chosen = _exp_and_chosen(student, labels)
    rest = total(jnp.where(chosen, 0, exp))
    return jnp.where(chosen, -rest, exp) / jnp.maximum(total(exp), 1)


@_hard_gradient.defjvp
def _hard_gradient_jvp(primals, tangents):
    return _hard_gradient(*primals), _fisher(primals[0], tangents[0])
