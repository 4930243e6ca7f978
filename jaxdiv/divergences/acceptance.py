"""Losses of the chance that rejection sampling accepts a draft, Σ min(p, q) = 1 - TV."""

import jax
import jax.numpy as jnp

from jaxdiv.divergences import terms
from jaxdiv.divergences.blocks import in_blocks
from jaxdiv.divergences.engine import divergence, gradient
from jaxdiv.divergences.inputs import prepare
from jaxdiv.divergences.rows import along, compare, log_probabilities, total, weighted

RATE = 3.0
_LEAST = -60.0  # log acceptance below which probabilities may underflow


@in_blocks
def negative_acceptance(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """-Σ min(p, q), a row, [...] in [-1, 0]: total variation less 1, with all digits where little
    is accepted.

    Arguments and errors as in `forward_kl`. Source: Leviathan et al., arXiv 2211.17192, corollary
    3.6.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _negative_acceptance(student, teacher)


@jax.custom_jvp
def _negative_acceptance(student, teacher):
    rows = compare(student, teacher)
    variation = total(terms.TOTAL_VARIATION.value(rows))
    return jnp.where(variation < 0.5, variation - 1, -_common_mass(rows))[..., 0]


def _common_mass(rows):
    # Vectorised, XLA's minimum takes the number where the other is NaN.
    return total(jnp.where(jnp.isnan(rows.r), rows.r, jnp.minimum(rows.p, rows.q)))


@_negative_acceptance.defjvp
def _negative_acceptance_jvp(primals, tangents):
    slope = gradient(terms.TOTAL_VARIATION, *primals)
    return _negative_acceptance(*primals), along(slope, tangents[0])


@in_blocks
def negative_log_acceptance(
    student_logits, teacher_logits, *, axis: int = -1, where=None
) -> jax.Array:
    """-log Σ min(p, q), nats a row; its gradient is that of total variation over the acceptance.

    Arguments and errors as in `forward_kl`. Finite as long as one class has both probabilities,
    however small.

    Returns:
      [...] in [0, inf]; inf where no class is common, with a gradient of 0.

    Source: LK losses, arXiv 2602.23881, L_LK^α.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _negative_log_acceptance(student, teacher)


@jax.custom_jvp
def _negative_log_acceptance(student, teacher):
    rows = compare(student, teacher)
    return _value(rows, _common(student, teacher))


def _value(rows, common):
    variation = total(terms.TOTAL_VARIATION.value(rows))
    # One form alone fails: the first is infinite where little is common, the second loses all
    # digits near equality.
    close = -jnp.log1p(-jnp.minimum(variation, 0.5))
    return jnp.where(variation < 0.5, close, -common)[..., 0]


def _common(student, teacher):
    """log Σ min(p, q), [..., 1]."""
    return jax.nn.logsumexp(
        jnp.minimum(log_probabilities(student), log_probabilities(teacher)), axis=-1, keepdims=True
    )


@_negative_log_acceptance.defjvp
def _negative_log_acceptance_jvp(primals, tangents):
    value = _negative_log_acceptance(*primals)
    return value, along(_gradient(*primals), tangents[0])


@jax.custom_jvp
def _gradient(student, teacher):
    """The share of each class that follows the student, less q times their sum, negated."""
    rows = compare(student, teacher)
    common = _common(student, teacher)
    close = terms.TOTAL_VARIATION.slope(rows) / jnp.exp(jnp.maximum(common, _LEAST))
    share = _share(student, rows, common)
    return jnp.where(common > _LEAST, close, rows.q * total(share) - share)


def _share(student, rows, common):
    """min(p, q)/Σmin(p, q) where q < p, the classes whose acceptance follows the student; half of
    it where q = p."""
    common = jnp.maximum(common, jnp.finfo(student.dtype).min)
    return (0.5 - 0.5 * jnp.sign(rows.r)) * jnp.exp(
        jnp.minimum(log_probabilities(student) - common, 0)
    )


@_gradient.defjvp
def _gradient_jvp(primals, tangents):
    rows = compare(*primals)
    share = _share(primals[0], rows, _common(*primals))
    moved = tangents[0] - total(rows.q * tangents[0])
    mean = total(share * moved)
    product = rows.q * (moved * total(share) + mean - mean * total(share)) - share * (moved - mean)
    return _gradient(*primals), product


@in_blocks
def lk_hybrid(
    student_logits, teacher_logits, *, rate: float = RATE, axis: int = -1, where=None
) -> jax.Array:
    """λ·KL(teacher ‖ student) + (1-λ)·TV with λ = exp(-rate·acceptance), the acceptance taken as a
    constant.

    λ is each row's own. Other arguments and errors as in `forward_kl`.

    Args:
      rate: how fast λ falls with the acceptance, >= 0.

    Returns:
      [...] in [0, inf].

    Raises:
      ValueError: if `rate` is negative or not finite.

    Source: LK losses, arXiv 2602.23881, L_LK^λ with η = 3.
    """
    kl, variation = lk_hybrid_parts(
        student_logits, teacher_logits, rate=rate, axis=axis, where=where
    )
    return kl + variation


def lk_hybrid_parts(
    student_logits, teacher_logits, *, rate: float = RATE, axis: int = -1, where=None
):
    """The two parts of `lk_hybrid`, λ·KL and (1-λ)·TV: a distillation temperature scales each by
    its own factor."""
    if not 0 <= rate < float("inf"):
        raise ValueError(f"`rate` must be in [0, inf), got {rate}.")
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    variation = divergence(terms.TOTAL_VARIATION, student, teacher)
    weight = jnp.exp(-rate * (1 - jax.lax.stop_gradient(variation)))
    return weighted(weight, divergence(terms.FORWARD_KL, student, teacher)), weighted(
        1 - weight, variation
    )
