"""A divergence split into its classes' parts, in a named gauge."""

import jax
import jax.numpy as jnp

from jaxdiv.divergences import engine
from jaxdiv.divergences.cross_entropies import cross_entropy_gradient, cross_entropy_terms
from jaxdiv.divergences.inputs import prepare
from jaxdiv.divergences.loss import get
from jaxdiv.divergences.rows import HUGE, compare


def contributions(text: str, student_logits, teacher_logits, *, gauge: str = "fixed") -> jax.Array:
    """Each class's part of a loss, nats.

    In the gauges `raw` and `fixed` the parts sum to the loss. They differ by multiples of q - p, which sum to 0: what
    a class's part says about a loss is therefore a matter of convention. What the class's logit feels is not: that is
    `gradient`.

    Args:
      text: what `jaxdiv.get` takes, of cross-entropy (soft teacher) and the f-divergences.
      student_logits: [..., V].
      teacher_logits: [..., V].
      gauge: `raw`, the formula as written, for cross-entropy (-p·log q) and forward KL (p·(log p - log q)) alone;
        `fixed`, each part >= 0 and, for an f-divergence, 0 where q = p; `gradient`, dD/dz of the student's logits.

    Returns:
      [..., V], float32 at least.

    Raises:
      ValueError: if the gauge is unknown or the loss has no such parts.
    """
    if gauge not in _GAUGES:
        raise ValueError(f"`gauge` must be one of {', '.join(_GAUGES)}, got {gauge!r}.")
    student, teacher = prepare(student_logits, teacher_logits, axis=-1, where=None)
    return sum(part.weight * _GAUGES[gauge](part, student, teacher) for part in get(text).parts)


def _raw(part, student, teacher):
    if part.name == "cross_entropy":
        return cross_entropy_terms(student, teacher)
    if part.name == "forward_kl":
        rows = compare(student, teacher)
        return -rows.p * jnp.minimum(rows.r, HUGE)
    raise ValueError(f"`{part.name}` has no parts in the gauge raw, only cross_entropy and forward_kl; use fixed.")


def _fixed(part, student, teacher):
    rows = compare(student, teacher)
    if part.name == "cross_entropy":
        return cross_entropy_terms(student, teacher) + rows.excess
    return _term(part).value(rows)


def _gradient(part, student, teacher):
    if part.name == "cross_entropy":
        return cross_entropy_gradient(student, teacher)
    return engine.gradient(_term(part), student, teacher)


def _term(part):
    if part.entry.term is None:
        raise ValueError(f"`{part.name}` is not a sum over classes; contributions are of ce and the f-divergences.")
    defaults = {name: parameter.default for name, parameter in part.entry.parameters.items()}
    return part.entry.term(**defaults | dict(part.parameters))


_GAUGES = {"raw": _raw, "fixed": _fixed, "gradient": _gradient}
