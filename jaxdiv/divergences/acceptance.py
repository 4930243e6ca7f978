"""Losses on the chance that rejection sampling accepts a draft, Σ min(p, q) = 1 - TV."""

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
    """Computes the negative acceptance -Σ min(p, q) = TV - 1, one value a row, in [-1, 0].

    Total variation in the form that logs can show as acceptance, with all digits where little is
    accepted. Arguments and errors as in `forward_kl`.

    Source: Leviathan et al., arXiv 2211.17192, corollary 3.6.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _negative_acceptance(student, teacher)


@jax.custom_jvp
def _negative_acceptance(student, teacher):
    rows = compare(student, teacher)
    variation = total(terms.TOTAL_VARIATION.value(rows))
    # XLA's vectorised minimum returns the number where the other operand is NaN.
    common = total(jnp.where(jnp.isnan(rows.r), rows.r, jnp.minimum(rows.p, rows.q)))
    return jnp.where(variation < 0.5, variation - 1, -common)[..., 0]


@_negative_acceptance.defjvp
def _negative_acceptance_jvp(primals, tangents):
    slope = gradient(terms.TOTAL_VARIATION, *primals)
    return _negative_acceptance(*primals), along(slope, tangents[0])


@in_blocks
def negative_log_acceptance(
    student_logits, teacher_logits, *, axis: int = -1, where=None
) -> jax.Array:
    """Computes the negative log acceptance -log Σ min(p, q), nats a row.

    It maximizes acceptance as total variation does, but divides the gradient by the acceptance, so
    that a draft that is rarely accepted still learns. Finite if one class has both probabilities,
    however small. Arguments and errors as in `forward_kl`.

    Returns:
      [...] in [0, inf]; inf, with a gradient of 0, where no class is common.

    Source: LK losses, arXiv 2602.23881, L_LK^α.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _negative_log_acceptance(student, teacher)


@jax.custom_jvp
def _negative_log_acceptance(student, teacher):
    rows = compare(student, teacher)
    variation = total(terms.TOTAL_VARIATION.value(rows))
    # One form alone fails: the first is infinite where little is common, the second loses all
    # digits near equality.
    close = -jnp.log1p(-jnp.minimum(variation, 0.5))
    return jnp.where(variation < 0.5, close, -_log_acceptance(student, teacher))[..., 0]


def _log_acceptance(student, teacher):
    """Returns log Σ min(p, q), [..., 1]."""
    smaller = jnp.minimum(log_probabilities(student), log_probabilities(teacher))
    return jax.nn.logsumexp(smaller, axis=-1, keepdims=True)


@_negative_log_acceptance.defjvp
def _negative_log_acceptance_jvp(primals, tangents):
    value = _negative_log_acceptance(*primals)
    return value, along(_gradient(*primals), tangents[0])


@jax.custom_jvp
def _gradient(student, teacher):
    """Computes q·Σshare - share with the shares of `_share`."""
    rows = compare(student, teacher)
    log_acceptance = _log_acceptance(student, teacher)
    close = terms.TOTAL_VARIATION.slope(rows) / jnp.exp(jnp.maximum(log_acceptance, _LEAST))
    share = _share(student, rows, log_acceptance)
    return jnp.where(log_acceptance > _LEAST, close, rows.q * total(share) - share)


def _share(student, rows, log_acceptance):
    """Returns min(p, q)/Σmin(p, q) where q < p, half of it where q = p, and 0 elsewhere.

    These are the classes whose acceptance rises with the student's probability.
    """
    log_acceptance = jnp.maximum(log_acceptance, jnp.finfo(student.dtype).min)
    ratio = jnp.exp(jnp.minimum(log_probabilities(student) - log_acceptance, 0))
    return (0.5 - 0.5 * jnp.sign(rows.r)) * ratio


@_gradient.defjvp
def _gradient_jvp(primals, tangents):
    rows = compare(*primals)
    share = _share(primals[0], rows, _log_acceptance(*primals))
    log_q_dot = tangents[0] - total(rows.q * tangents[0])
    mean = total(share * log_q_dot)
    by_student = rows.q * (log_q_dot * total(share) + mean - mean * total(share))
    return _gradient(*primals), by_student - share * (log_q_dot - mean)


@in_blocks
def lk_hybrid(
    student_logits, teacher_logits, *, rate: float = RATE, axis: int = -1, where=None
) -> jax.Array:
    """Computes λ·KL(teacher ‖ student) + (1-λ)·TV with λ = exp(-rate·acceptance), one value a row.

    For a student that starts from nothing: it begins as forward KL, whose gradient does not vanish,
    and ends as total variation, which is what acceptance needs. Each row has its own λ, a constant
    for the gradient. Other arguments and errors as in `forward_kl`.

    Args:
      rate: the speed at which λ falls with the acceptance, >= 0.

    Returns:
      [...] in [0, inf].

    Raises:
      ValueError: if `rate` is negative or not finite.

    Source: LK losses, arXiv 2602.23881, L_LK^λ with η = 3.
    """
    options = {"rate": rate, "axis": axis, "where": where}
    kl, variation = lk_hybrid_parts(student_logits, teacher_logits, **options)
    return kl + variation


def lk_hybrid_parts(
    student_logits, teacher_logits, *, rate: float = RATE, axis: int = -1, where=None
):
    """Computes λ·KL and (1-λ)·TV of `lk_hybrid` apart; each has its own temperature factor."""
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _hybrid((student, teacher), (student, teacher), rate)


def lk_hybrid_parts_with_rest(student_logits, teacher_logits, *, rate: float = RATE, axis, where):
    """Computes `lk_hybrid_parts` of logits [..., K+1] whose last class the student can't draft.

    The acceptance is that of all classes, and KL that of the others alone.
    """
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    return _hybrid((student[..., :-1], teacher[..., :-1]), (student, teacher), rate)


def _hybrid(of_kl, of_variation, rate):
    """Returns λ·KL and (1-λ)·TV of two pairs of logits."""
    if not 0 <= rate < float("inf"):
        raise ValueError(f"`rate` must be in [0, inf), got {rate}.")
    variation = divergence(terms.TOTAL_VARIATION, *of_variation)
    kl = divergence(terms.FORWARD_KL, *of_kl)
    weight = jnp.exp(-rate * (1 - jax.lax.stop_gradient(variation)))
    return weighted(weight, kl), weighted(1 - weight, variation)
