"""Teachers other than dense logits: labels, the most probable or chosen classes, or samples.

A loss takes dense logits and log-probabilities as they are. Each class here is a pytree, which
passes through `jit`, `vmap` and shardings like an array, and takes the teacher's place in a loss:

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
    """One class a row: a teacher that is certain of it, at any distillation temperature.

    Attributes:
      classes: [...] integers in [0, V).
    """

    classes: jax.Array


@_pytree(meta=("temperature",))
class TopK:
    """A teacher's k most probable classes, and the others as one.

    A divergence is then between k+1 classes, as the student's other classes are summed too. For
    every f-divergence, Rényi's and the acceptance losses that is at most the divergence of the
    whole rows.

    Attributes:
      indices: [..., k] integers, distinct in a row where their logit is above -inf.
      logits: [..., k], in the units of `tail`; -inf where a row has fewer classes.
      tail: [...], the log-sum-exp of the other logits; -inf for a teacher cut to its k classes.
      temperature: the temperature of the cut; a sum of exponentials can't be converted to another.
    """

    indices: jax.Array
    logits: jax.Array
    tail: jax.Array
    temperature: float = 1.0


@_pytree(meta=("temperature",))
class Restricted:
    """A teacher seen on the K classes that the student has, which can draft no others.

    Acceptance losses take the teacher's true probabilities, so that q is 0 on the other classes:
    acceptance is Σ_K min(p, q), at most p(K). Other losses take the teacher renormalized on the K
    classes. Labels are positions among the K classes; one below 0 is of another class, and its row
    has a value and gradient of 0 under losses on labels.

    Attributes:
      logits: [..., K], the teacher's, of the student's classes; hidden states beside a fused head.
      normalizer: [...], the log-sum-exp of all of the teacher's logits, divided by `temperature`;
        None if no acceptance loss reads it.
      temperature: that of the normalizer, which must be the loss's.
    """

    logits: jax.Array
    normalizer: jax.Array | None
    temperature: float = 1.0


@_pytree(meta=("temperature",))
class Samples:
    """Classes drawn from the teacher.

    Their mean of -log q is an unbiased estimate of the cross-entropy. With the teacher's
    log-probabilities the mean of φ/p is one of every f-divergence whose support the teacher covers,
    in value and gradient. Logarithms and other functions of such a mean are biased.

    Attributes:
      classes: [..., n] integers in [0, V).
      log_probabilities: [..., n], the teacher's log-probabilities of these classes, or None.
      temperature: the temperature of the draws.
    """

    classes: jax.Array
    log_probabilities: jax.Array | None = None
    temperature: float = 1.0


Target = Labels | TopK | Restricted | Samples  # a teacher other than dense logits


def top_k(teacher_logits: jax.Array, k: int, *, temperature: float = 1.0) -> TopK:
    """Returns the k largest of dense logits [..., V], with the mass of the others.

    Raises:
      ValueError: if k is not in 1..V.
    """
    logits = jnp.asarray(teacher_logits)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"`k` must be from 1 to the {logits.shape[-1]} classes, got {k}.")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}.")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
    largest, indices = jax.lax.top_k(logits, k)
    return TopK(indices, largest, log_sum_exp(without(logits, indices, largest)), temperature)


def renormalized_top_k(teacher_logits: jax.Array, k: int, *, temperature: float = 1.0) -> TopK:
    """Returns the k largest of dense logits [..., V] as if there were no others.

    Biased: the student learns to put nothing outside of them, and no bound holds. Errors as in
    `top_k`.
    """
    cut = top_k(teacher_logits, k, temperature=temperature)
    return dataclasses.replace(cut, tail=jnp.full_like(cut.tail, -jnp.inf))


def restricted(
    teacher_logits: jax.Array, classes: jax.Array, *, temperature: float = 1.0
) -> Restricted:
    """Returns the columns `classes` [K] of dense logits [..., V], with the log-sum-exp of all."""
    logits = jnp.asarray(teacher_logits)
    precise = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    normalizer = log_sum_exp(precise / temperature)
    return Restricted(jnp.take(logits, classes, axis=-1), normalizer, temperature)


def top_k_of_log_probabilities(
    indices: jax.Array, log_probabilities: jax.Array, *, temperature: float = 1.0
) -> TopK:
    """Converts what a serving stack returns: log-probabilities [..., k] of `indices` [..., k].

    The tail is the rest to 1, but at least the rounding error (1e-7 in float32): a tail of 0 would
    make finite divergences infinite.
    """
    logits = jnp.asarray(log_probabilities)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    rest = 1 - jnp.sum(jnp.exp(logits), axis=-1)
    tail = jnp.log(jnp.maximum(rest, jnp.finfo(rest.dtype).eps))
    return TopK(jnp.asarray(indices), logits, tail, temperature)


def as_top_k(target: Labels | TopK, temperature: float, rows: tuple[int, ...]) -> TopK:
    """Returns labels and top-k targets in one form.

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


def check(classes: jax.Array, target_temperature: float, temperature: float) -> None:
    """Raises ValueError if classes are no integers, or target and loss differ in temperature."""
    if not jnp.issubdtype(jnp.asarray(classes).dtype, jnp.integer):
        raise ValueError(f"a target's classes must be integers, got {jnp.asarray(classes).dtype}.")
    check_temperature(target_temperature, temperature)


def check_temperature(target_temperature: float, temperature: float) -> None:
    """Raises ValueError if target and loss differ in temperature."""
    if isinstance(temperature, jax.core.Tracer) or target_temperature != temperature:
        raise ValueError(
            f"the target was made at temperature {target_temperature}, the loss is at "
            f"{temperature}; make both the same."
        )


def coarse(student: jax.Array, target: TopK) -> tuple[jax.Array, jax.Array]:
    """Returns logits [..., k+1] of student and teacher on the target's classes and the rest.

    Args:
      student: logits [..., V].
      target: the teacher.

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
            f"a top-k target must have rows {rows}, got indices {target.indices.shape}, "
            f"logits {target.logits.shape}, tail {target.tail.shape}."
        )
    absent = jnp.isneginf(target.logits)
    top = jnp.where(absent, -jnp.inf, at(student, target.indices))
    rest = log_sum_exp(without(student, target.indices, target.logits))
    teacher = jnp.concatenate([target.logits, target.tail[..., None]], axis=-1)
    return jnp.concatenate([top, rest[..., None]], axis=-1), jax.lax.stop_gradient(teacher)


_LARGEST = 80.0  # of -log p(K); float32 holds no probability that is much smaller


def with_rest(
    student: jax.Array, teacher: jax.Array, normalizer: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns logits [..., K+1] of both sides; the last class is all that the student lacks.

    Args:
      student, teacher: logits [..., K] of the student's classes, at the normalizer's temperature.
      normalizer: [...], the log-sum-exp of all of the teacher's logits.

    Raises:
      ValueError: if the normalizer does not fit the rows.
    """
    if jnp.shape(normalizer) != teacher.shape[:-1]:
        raise ValueError(
            f"the `normalizer` of a restricted target must have the rows' shape "
            f"{teacher.shape[:-1]}, got {jnp.shape(normalizer)}."
        )
    inside = log_sum_exp(teacher)
    surprise = jnp.clip(normalizer.astype(inside.dtype) - inside, 0, _LARGEST)  # -log p(K)
    rest = inside + surprise + jnp.log(-jnp.expm1(-surprise))
    absent = jnp.full_like(rest, -jnp.inf)
    student = jnp.concatenate([student, absent[..., None]], axis=-1)
    return student, jax.lax.stop_gradient(jnp.concatenate([teacher, rest[..., None]], axis=-1))


def at(values: jax.Array, indices: jax.Array) -> jax.Array:
    """Gathers values [..., V] at indices [..., k]; NaN at an index outside of 0..V-1."""
    indices = _without_negative(indices, values)
    return jnp.take_along_axis(values, indices, axis=-1, mode="fill", fill_value=jnp.nan)


def _without_negative(indices, values):
    """Replaces indices below 0, which NumPy counts from the end, by V."""
    return jnp.where(indices < 0, values.shape[-1], indices)


def without(logits: jax.Array, indices: jax.Array, top: jax.Array) -> jax.Array:
    """Returns logits [..., V] with -inf at indices [..., k] whose logit in `top` is not -inf."""

    @functools.partial(jnp.vectorize, signature="(v),(k),(k)->(v)")
    def row(logits, indices, present):
        removed = jnp.zeros(logits.shape, bool).at[indices].max(present, mode="drop")
        return jnp.where(removed, -jnp.inf, logits)

    return row(logits, _without_negative(indices, logits), ~jnp.isneginf(top))


def log_sum_exp(logits: jax.Array) -> jax.Array:
    """Reduces [..., V] to [...]; -inf, with a gradient of 0, for a row of -inf."""
    some = jnp.any(~jnp.isneginf(logits), axis=-1)
    sums = jax.nn.logsumexp(jnp.where(some[..., None], logits, 0), axis=-1)
    return jnp.where(some, sums, -jnp.inf)
