"""Adaptive KL: forward KL where the student misses the teacher's head, else reverse KL."""

import functools

import jax
import jax.numpy as jnp

from jaxdiv.divergences import terms
from jaxdiv.divergences.blocks import in_blocks
from jaxdiv.divergences.engine import divergence
from jaxdiv.divergences.inputs import prepare
from jaxdiv.divergences.rows import compare, total, weighted

HEAD = 0.5


@in_blocks
def adaptive_kl(
    student_logits, teacher_logits, *, head: float = HEAD, axis: int = -1, where=None
) -> jax.Array:
    """Computes λ·KL(teacher ‖ student) + (1-λ)·KL(student ‖ teacher), nats a row, in [0, inf].

    It adapts the direction to each row: forward KL where the student misses the head of the
    teacher's distribution, reverse KL where it misses the tail. λ, a constant for the gradient, is
    the head's share of Σ|p-q|. The head is the most probable class and those after it while their
    probabilities, in falling order, sum to at most `head`; equal ones go together. Other arguments
    as in `forward_kl`.

    Args:
      head: mass of the head, in (0, 1).

    Raises:
      ValueError: if `head` is not in (0, 1).

    Source: Wu et al., arXiv 2404.02657, AKL with μ = 0.5.
    """
    if not 0 < head < 1:
        raise ValueError(f"`head` must be in (0, 1), got {head}.")
    student, teacher = prepare(student_logits, teacher_logits, axis=axis, where=where)
    rows = compare(jax.lax.stop_gradient(student), teacher)
    gap = jnp.abs(rows.excess)
    whole = total(gap)
    inside = rows.p >= _least_inside(rows.p, head)
    weight = (total(jnp.where(inside, gap, 0)) / jnp.where(whole == 0, 1, whole))[..., 0]
    forward = divergence(terms.FORWARD_KL, student, teacher)
    reverse = divergence(terms.REVERSE_KL, student, teacher)
    return weighted(weight, forward) + weighted(1 - weight, reverse)


def _least_inside(p: jax.Array, head: float) -> jax.Array:
    """Finds the least x in [0, max p] with Σ p over p >= x at most `head`, or max p, [..., 1].

    It bisects the bits of x, which have the order of floats >= 0: exact, and cheaper than sorting
    a vocabulary.
    """
    bits = jnp.uint32 if p.dtype == jnp.float32 else jnp.uint64
    as_bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=bits)
    as_float = functools.partial(jax.lax.bitcast_convert_type, new_dtype=p.dtype)
    largest = as_bits(jnp.max(p, axis=-1, keepdims=True))

    def halve(_, between):
        low, high = between
        middle = low + (high - low) // 2
        fits = total(jnp.where(p >= as_float(middle), p, 0)) <= head
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    _, least = jax.lax.fori_loop(0, 8 * p.dtype.itemsize, halve, (jnp.zeros_like(largest), largest))
    return as_float(least)
