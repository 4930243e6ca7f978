"""A loss split into its classes' parts, in a named gauge; their shares, and the largest of them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv.divergences.cross_entropies import cross_entropy_terms
from jaxdiv.divergences.inputs import prepare
from jaxdiv.divergences.loss import get
from jaxdiv.divergences.rows import compare, softmax

GAUGES = ("raw", "fixed", "gradient")


class Movers(NamedTuple):
    """The largest parts of each row: `classes`, int32 [..., k], and their `parts`, [..., k]."""

    classes: jax.Array
    parts: jax.Array


def contributions(
    text: str, student_logits, teacher_logits, *, gauge: str = "fixed", labels=None
) -> jax.Array:
    """Splits a loss into its classes' parts, nats.

    In the gauges `raw` and `fixed` the parts sum to the loss. They differ by multiples of q - p,
    which sum to 0, so that a class's share of the loss is a matter of convention. Its share of the
    gradient is not: that is the gauge `gradient`.

    Args:
      text: a loss as `jaxdiv.get` reads it.
      student_logits: [..., V].
      teacher_logits: [..., V].
      gauge: `raw`, the formula as written if that is a sum over classes, such as -p·log q;
        `fixed`, each part >= 0 and, for an f-divergence, 0 where q = p; `gradient`, dD/dz by the
        student's logits, which every loss has.
      labels: [...] integers, for the gradient of losses that need them.

    Returns:
      [..., V], float32 at least.

    Raises:
      ValueError: if the gauge is unknown, the loss has no parts in it, or labels are missing.
    """
    if gauge not in GAUGES:
        raise ValueError(f"`gauge` must be one of {', '.join(GAUGES)}, got {gauge!r}.")
    loss = get(text)
    for part in loss.parts:
        if gauge not in _gauges(part):
            others = " or ".join(_gauges(part))
            raise ValueError(f"`{part.name}` has no parts in the gauge {gauge}; use {others}.")
    student, teacher = prepare(student_logits, teacher_logits, axis=-1, where=None)
    if gauge == "gradient":
        return jax.grad(lambda logits: loss(logits, teacher, labels=labels).sum())(student)
    split = _raw if gauge == "raw" else _fixed
    return sum(part.weight * split(part, student, teacher) for part in loss.parts)


def gauges(text: str) -> tuple[str, ...]:
    """Returns the members of `GAUGES` that the loss has parts in."""
    parts = get(text).parts
    return tuple(gauge for gauge in GAUGES if all(gauge in _gauges(part) for part in parts))


def shares(parts) -> jax.Array:
    """Divides each part's size by the sum of all sizes.

    Args:
      parts: [..., V].

    Returns:
      [..., V] in [0, 1], float32 at least; 0 where all parts are 0. Infinite parts share equally.
    """
    parts = jnp.asarray(parts)
    parts = parts.astype(jnp.promote_types(parts.dtype, jnp.float32))
    # Bounded, so that their sum does not overflow.
    sizes = jnp.minimum(jnp.abs(parts), jnp.finfo(parts.dtype).max / (8 * parts.shape[-1]))
    total = jnp.sum(sizes, axis=-1, keepdims=True)
    return sizes / jnp.where(total == 0, 1, total)


def top_movers(parts, k: int) -> Movers:
    """Returns the k largest parts by size, whatever their sign; of equal ones the first class.

    Args:
      parts: [..., V].
      k: number of parts, from 1 to V.

    Returns:
      `Movers`, with the parts' signs.

    Raises:
      ValueError: if there are fewer than k classes.
    """
    parts = jnp.asarray(parts)
    if not 1 <= k <= parts.shape[-1]:
        raise ValueError(
            f"`k` must be from 1 to the number of classes, {parts.shape[-1]}, got {k}."
        )
    _, classes = jax.lax.top_k(jnp.abs(parts), k)
    return Movers(classes=classes, parts=jnp.take_along_axis(parts, classes, axis=-1))


def _raw(part, student, teacher):
    if part.name == "cross_entropy":
        return cross_entropy_terms(student, _smooth(student, teacher, **part.all_parameters))
    if part.name in _WRITTEN_AS_FIXED:
        return _fixed(part, student, teacher)
    return _WRITTEN[part.name](compare(student, teacher), **part.all_parameters)


def _fixed(part, student, teacher):
    if part.name == "cross_entropy":
        teacher = _smooth(student, teacher, **part.all_parameters)
        return cross_entropy_terms(student, teacher) + compare(student, teacher).excess
    return part.entry.term(**part.all_parameters).value(compare(student, teacher))


def _smooth(student, teacher, smoothing):
    """Smooths the teacher's logits [..., V] over the classes that the student has."""
    if smoothing == 0:
        return teacher
    present = ~jnp.isneginf(student)
    uniform = present / jnp.maximum(jnp.sum(present, axis=-1, keepdims=True), 1)
    return jnp.log((1 - smoothing) * softmax(teacher) + smoothing * uniform)


def _times(weight, ratio):
    """Multiplies; 0 where the ratio is -inf, as the weight, a probability, is 0 there."""
    return jnp.where(jnp.isinf(ratio), jnp.maximum(ratio, 0), weight * ratio)


def _log_mixture(alpha, r):
    """Computes log(α + (1-α)eʳ)."""
    return jnp.logaddexp(math.log(alpha), math.log1p(-alpha) + r)


# Formulas as written; the engine's terms differ from them by multiples of q - p.
_WRITTEN = {
    "forward_kl": lambda rows: _times(rows.p, -rows.r),
    "reverse_kl": lambda rows: _times(rows.q, rows.r),
    "skew_kl": lambda rows, alpha: _times(rows.p, -_log_mixture(alpha, rows.r)),
    "negative_acceptance": lambda rows: -jnp.minimum(rows.p, rows.q),
    "skew_reverse_kl": lambda rows, alpha: _times(rows.q, -_log_mixture(alpha, -rows.r)),
}
# Losses whose terms in the engine are their formulas as written.
_WRITTEN_AS_FIXED = (
    "jeffreys",
    "jensen_shannon",
    "reverse_jensen_shannon",
    "squared_hellinger",
    "pearson_chi_squared",
    "neyman_chi_squared",
    "total_variation",
)


def _gauges(part):
    soft = part.name == "cross_entropy"
    raw = soft or part.name in _WRITTEN or part.name in _WRITTEN_AS_FIXED
    fixed = soft or part.entry.term is not None
    return tuple(gauge for gauge, has in zip(GAUGES, (raw, fixed, True), strict=True) if has)
