"""The engine of f-divergences: a term's value, gradient and Hessian product in closed form."""

import functools

import jax
import jax.numpy as jnp

from jaxdiv.divergences.rows import along, compare, total
from jaxdiv.divergences.terms import Term


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def divergence(term: Term, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Sums a term over the classes of prepared logits [..., V]; the teacher is a constant."""
    return total(term.value(compare(student, teacher)))[..., 0]


@divergence.defjvp
def _divergence_jvp(term, primals, tangents):
    slope = gradient(term, *primals)
    return divergence(term, *primals), along(slope, tangents[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gradient(term: Term, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Computes dD/dz_s = φ_b - q·Σφ_b, [..., V], by the student's logits."""
    rows = compare(student, teacher)
    slope = term.slope(rows)
    if term.balanced:
        return slope
    slope = _centered(slope, rows.q)
    return slope - rows.q * total(slope)


def _centered(slope, q):
    """Subtracts the multiple of q that makes the likeliest class's slope 0.

    Without it slope - q·Σslope would leave few digits there.
    """
    likeliest = q == jnp.max(q, axis=-1, keepdims=True)
    mass = jnp.maximum(total(jnp.where(likeliest, q, 0)), jnp.finfo(q.dtype).tiny)
    return slope - q * (total(jnp.where(likeliest, slope, 0)) / mass)


@gradient.defjvp
def _gradient_jvp(term, primals, tangents):
    rows = compare(*primals)
    log_q_dot = tangents[0] - total(rows.q * tangents[0])
    slope_dot = _bounded(term.curvature(rows)) * log_q_dot
    product = slope_dot - rows.q * (
        total(slope_dot) + log_q_dot * total(_bounded(term.slope(rows)))
    )
    return gradient(term, *primals), product


def _bounded(values):
    """Clips values whose product with a tangent might overflow, and then be NaN times 0."""
    largest = float(jnp.finfo(values.dtype).max) ** 0.75 / values.shape[-1]
    return jnp.clip(values, -largest, largest)
