"""What a teacher hands over where it is not dense logits: labels, its most probable classes, or
samples.

Dense logits and log-probabilities need no wrapping: a loss takes both as they are. Each class here
is a pytree, so that it passes through `jit`, `vmap` and shardings like an array, and is given to a
loss in the teacher's place:

  jaxdiv.get("kl")(student_logits, targets.top_k(teacher_logits, 64))
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


def _pytree(*, meta=()):
    def register(cls):
        cls = dataclasses.dataclass(frozen=True)(cls)
        data = [field.name for field in dataclasses.fields(cls) if field.name not in meta]
        return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=list(meta))

    return register


@_pytree()
class Labels:
    """One class a row, as a teacher that is certain of it, heated like any other under a
    distillation temperature.

    Attributes:
      classes: [...] integers in [0, V).
    """

    classes: jax.Array


@_pytree(meta=("temperature",))
class TopK:
    """A teacher's k most probable classes, and the others as one.

    A divergence is then taken between k+1 classes, the student's others summed as well. For every
    f-divergence, and for Rényi's and the acceptance losses, that is at most the divergence of the
    whole rows.

    Attributes:
      indices: [..., k] integers, distinct in a row where their logit is above -inf.
      logits: [..., k], in the units of `tail`; -inf where a row has fewer classes.
      tail: [...], the log-sum-exp of the other logits; -inf for a teacher cut to its k classes.
      temperature: at which it was cut: a sum of exponentials can't be brought to another.
    """

    indices: jax.Array
    logits: jax.Array
    tail: jax.Array
    temperature: float = 1.0


@_pytree(meta=("temperature",))
class Samples:
    """Classes drawn from the teacher.

    The mean over them of -log q is unbiased for the cross-entropy; with the teacher's
    log-probabilities that of φ/p is for every f-divergence whose support the teacher covers, in
    value and gradient. Logarithms and other functions of such a mean are not.

    Attributes:
      classes: [..., n] integers in [0, V).
      log_probabilities: [..., n], the teacher's of these, or None.
      temperature: at which they were drawn.
    """

    classes: jax.Array
    log_probabilities: jax.Array | None = None
    temperature: float = 1.0


def top_k(teacher_logits: jax.Array, k: int, *, temperature: float = 1.0) -> TopK:
    """The k largest of dense logits [..., V], with the others' mass.

    Raises:
      ValueError: if k is not in 1..V.
    """
    logits = jnp.asarray(teacher_logits)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"`k` must be from 1 to the {logits.shape[-1]} classes, got {k}.")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}.")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
    kept, indices = jax.lax.top_k(logits, k)
    return TopK(indices, kept, log_sum_exp(without(logits, indices, kept)), temperature)


def renormalized_top_k(teacher_logits: jax.Array, k: int, *, temperature: float = 1.0) -> TopK:
    """The k largest of dense logits [..., V] as if there were no others.

    Biased: the student is drawn to put nothing outside of them, and no bound holds. Raises as
      `top_k`.
    """
    cut = top_k(teacher_logits, k, temperature=temperature)
    return dataclasses.replace(cut, tail=jnp.full_like(cut.tail, -jnp.inf))


def top_k_of_log_probabilities(
    indices: jax.Array, log_probabilities: jax.Array, *, temperature: float = 1.0
) -> TopK:
    """From what a serving stack returns: normalized log-probabilities [..., k] of the classes
    `indices` [..., k].

    The tail is what they leave to 1, but no less than rounding can tell (1e-7 in float32): a tail
    of 0 would make divergences infinite that are not.
    """
    log_probabilities = jnp.asarray(log_probabilities)
    log_probabilities = log_probabilities.astype(
        jnp.promote_types(log_probabilities.dtype, jnp.float32)
    )
    left = 1 - jnp.sum(jnp.exp(log_probabilities), axis=-1)
    tail = jnp.log(jnp.maximum(left, jnp.finfo(left.dtype).eps))
    return TopK(jnp.asarray(indices), log_probabilities, tail, temperature)


def as_top_k(target: Labels | TopK, temperature: float, rows: tuple[int, ...]) -> TopK:
    """A target of few classes in one form.

    Raises:
      ValueError: if it was cut at another temperature, its classes are no integers, or labels do
        not fit the rows.
    """
    if isinstance(target, Labels):
        if jnp.shape(target.classes) != rows:
            raise ValueError(
                f"`Labels` must have the rows' shape {rows}, got {jnp.shape(target.classes)}."
            )
        zeros = jnp.zeros(jnp.shape(target.classes), jnp.float32)
        target = TopK(
            jnp.asarray(target.classes)[..., None], zeros[..., None], zeros - jnp.inf, temperature
        )
    check(target.indices, target.temperature, temperature)
    return target


def check(classes: jax.Array, given: float, temperature: float) -> None:
    """Raises ValueError if a target's classes are no integers or its temperature is not the
    loss's."""
    if not jnp.issubdtype(jnp.asarray(classes).dtype, jnp.integer):
        raise ValueError(f"a target's classes must be integers, got {jnp.asarray(classes).dtype}.")
    if isinstance(temperature, jax.core.Tracer) or given != temperature:
        raise ValueError(
            f"the target was made at temperature {given}, the loss is at {temperature}; make both the same."
        )


def coarse(student: jax.Array, target: TopK) -> tuple[jax.Array, jax.Array]:
    """Logits [..., k+1] of student [..., V] and teacher on the target's classes and the rest.

    Raises:
      ValueError: if the rows do not fit.
    """
    rows = student.shape[:-1]
    if (
        target.indices.shape[:-1] != rows
        or target.logits.shape != target.indices.shape
        or target.tail.shape != rows
    ):
        raise ValueError(
            f"a top-k target must have rows {rows}, got indices {target.indices.shape}, logits {target.logits.shape}, "
            f"tail {target.tail.shape}."
        )
    absent = jnp.isneginf(target.logits)
    kept = jnp.where(absent, -jnp.inf, at(student, target.indices))
    rest = log_sum_exp(without(student, target.indices, target.logits))
    teacher = jnp.concatenate([target.logits, target.tail[..., None]], axis=-1)
    return jnp.concatenate([kept, rest[..., None]], axis=-1), jax.lax.stop_gradient(teacher)


def at(values: jax.Array, indices: jax.Array) -> jax.Array:
    """values [..., V] at indices [..., k]; NaN at an index outside of 0..V-1."""
    return jnp.take_along_axis(
        values, _none_from_the_end(indices, values), axis=-1, mode="fill", fill_value=jnp.nan
    )


def _none_from_the_end(indices, values):
    """Indices below 0 as ones outside."""
    return jnp.where(indices < 0, values.shape[-1], indices)


def without(logits: jax.Array, indices: jax.Array, kept: jax.Array) -> jax.Array:
    """logits [..., V] with -inf at indices [..., k] whose `kept` is above -inf."""

    @functools.partial(jnp.vectorize, signature="(v),(k),(k)->(v)")
    def row(logits, indices, present):
        taken = jnp.zeros(logits.shape, bool).at[indices].max(present, mode="drop")
        return jnp.where(taken, -jnp.inf, logits)

    return row(logits, _none_from_the_end(indices, logits), ~jnp.isneginf(kept))


def log_sum_exp(logits: jax.Array) -> jax.Array:
    """[..., V] -> [...]; -inf, with a gradient of 0, for a row of -inf."""
    some = jnp.any(~jnp.isneginf(logits), axis=-1)
    held = jax.nn.logsumexp(jnp.where(some[..., None], logits, 0), axis=-1)
    return jnp.where(some, held, -jnp.inf)
