"""From a term to a divergence: value, gradient and Hessian product by the student's logits, all in
closed form."""

import functools

import jax
import jax.numpy as jnp

from jaxdiv.divergences.rows import along, compare, total
from jaxdiv.divergences.terms import Term


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def divergence(term: Term, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Σφ over the last axis of prepared logits [..., V] -> [...]; the teacher is a constant."""
    return total(term.value(compare(student, teacher)))[..., 0]


@divergence.defjvp
def _divergence_jvp(term, primals, tangents):
    slope = gradient(term, *primals)
    return divergence(term, *primals), along(slope, tangents[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gradient(term: Term, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """dD/dz_s = φ_b - q·Σφ_b, [..., V]."""
    rows = compare(student, teacher)
    slope = term.slope(rows)
    if term.balanced:
        return slope
    slope = _centered(slope, rows.q)
    return slope - rows.q * total(slope)


def _centered(slope, q):
    """Less the multiple of q that makes it 0 by the likeliest class, where slope - q·Σ would leave
    few digits."""
    likeliest = q == jnp.max(q, axis=-1, keepdims=True)
    mass = jnp.maximum(total(jnp.where(likeliest, q, 0)), jnp.finfo(q.dtype).tiny)
    return slope - q * (total(jnp.where(likeliest, slope, 0)) / mass)


@gradient.defjvp
def _gradient_jvp(term, primals, tangents):
    rows = compare(*primals)
    moved = tangents[0] - total(rows.q * tangents[0])  # of log q
    bent = _held(term.curvature(rows)) * moved
    product = bent - rows.q * (total(bent) + moved * total(_held(term.slope(rows))))
    return gradient(term, *primals), product


def _held(values):
    """Cut where a product with a tangent might overflow, and so turn to NaN where it meets a
    probability of 0."""
    largest = float(jnp.finfo(values.dtype).max) ** 0.75 / values.shape[-1]
    return jnp.clip(values, -largest, largest)
