"""Rényi's divergences, logarithms of the affinity Σ p^α·q^(1-α); in log space where it is small."""

import functools

import jax
import jax.numpy as jnp

from jaxdiv.divergences import terms
from jaxdiv.divergences.blocks import in_blocks
from jaxdiv.divergences.f_divergences import forward_kl
from jaxdiv.divergences.inputs import prepare
from jaxdiv.divergences.rows import HUGE, along, compare, total

LARGEST = 5.0


@in_blocks
def renyi(
    student_logits, teacher_logits, *, alpha: float = 0.5, axis: int = -1, where=None
) -> jax.Array:
    """Computes Rényi's divergence log(Σ p^α·q^(1-α))/(α-1), nats a row, in [0, inf].

    Its gradient, q minus the normalized p^α·q^(1-α), is bounded whatever the distance, as forward
    KL's (α = 1) is; a smaller α tolerates missing classes. Finite for α < 1 if one class is common,
    for α > 1 if the student has every class of the teacher. Symmetric at α = ½. Other arguments as
    in `forward_kl`.

    Args:
      alpha: the order, in (0, 5].

    Raises:
      ValueError: if `alpha` is not in (0, 5].

    Source: van Erven and Harremoës, arXiv 1206.2459, equation 1.
    """
    if not 0 < alpha <= LARGEST:
        raise ValueError(f"`alpha` must be in (0, {LARGEST:g}], got {alpha}.")
    if alpha == 1:
        return forward_kl(student_logits, teacher_logits, axis=axis, where=where)
    return _renyi(float(alpha), *prepare(student_logits, teacher_logits, axis=axis, where=where))


@in_blocks
def bhattacharyya(student_logits, teacher_logits, *, axis: int = -1, where=None) -> jax.Array:
    """Computes Bhattacharyya's distance -log Σ √(pq), nats a row: half of `renyi` at α = ½.

    Like the Hellinger distance near equality, but its gradient does not vanish far from it. In
    [0, inf] and symmetric. Arguments as in `forward_kl`.

    Source: Bhattacharyya (1943).
    """
    return renyi(student_logits, teacher_logits, alpha=0.5, axis=axis, where=where) / 2


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _renyi(alpha, student, teacher):
    rows = compare(student, teacher)
    change = -alpha * (1 - alpha) * total(terms.alpha_divergence(alpha).value(rows))
    close = jnp.log1p(jnp.clip(change, -0.5, 0.5))
    far = jax.nn.logsumexp(terms.log_power(rows, alpha), axis=-1, keepdims=True)
    return _close_or_far(change, close, far)[..., 0] / (alpha - 1)


def _close_or_far(change, close, far):
    """Chooses `close` where the affinity, 1 + change, is near 1."""
    return jnp.where(jnp.abs(change) < 0.5, close, far)


def _share(rows, alpha):
    """Normalizes p^α·q^(1-α) over the classes; 0 where student and teacher share no class."""
    log = jnp.clip(terms.log_power(rows, alpha), -HUGE, HUGE)
    largest = jnp.max(log, axis=-1, keepdims=True)
    share = jnp.exp(log - largest)
    return jnp.where(largest > -HUGE, share / total(share), 0)


@_renyi.defjvp
def _renyi_jvp(alpha, primals, tangents):
    return _renyi(alpha, *primals), along(_gradient(alpha, *primals), tangents[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(alpha, student, teacher):
    rows = compare(student, teacher)
    slope = -alpha * terms.alpha_divergence(alpha).slope(rows)  # p^α·q^(1-α) - q
    change = total(slope)
    close = (rows.q * change - slope) / (1 + jnp.clip(change, -0.5, 0.5))
    share = _share(rows, alpha)
    return _close_or_far(change, close, rows.q * total(share) - share)


@_gradient.defjvp
def _gradient_jvp(alpha, primals, tangents):
    rows, tangent = compare(*primals), tangents[0]
    share = _share(rows, alpha)
    by_student = rows.q * (tangent - total(rows.q * tangent)) * total(share)
    by_share = (1 - alpha) * share * (tangent - total(share * tangent))
    return _gradient(alpha, *primals), by_student - by_share
