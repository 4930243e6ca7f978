"""One loss of a sum, for any kind of teacher: logits, summed classes or samples."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv import targets
from jaxdiv.divergences.entry import Entry
from jaxdiv.divergences.inputs import classes_last, prepare
from jaxdiv.divergences.rows import Rows, log_normalizer
from jaxdiv.divergences.terms import Term


class LossInputs(NamedTuple):
    """The arguments of a loss; see `Loss.__call__`."""

    student_logits: jax.Array
    teacher: Any
    labels: jax.Array | None
    temperature: float
    axis: int
    where: jax.Array | None


def evaluate(entry: Entry, parameters: dict[str, float], inputs: LossInputs) -> jax.Array:
    """Returns one value a row, [...], with the temperature's factor.

    Raises:
      ValueError: if the loss can't be computed from this kind of teacher.
    """
    student, teacher, labels, temperature, axis, where = inputs
    if entry.target == "":
        return entry.function(student, axis=axis, where=where, **parameters)
    if entry.target == "labels":
        if not isinstance(teacher, targets.Restricted):
            return entry.function(student, labels, axis=axis, where=where, **parameters)
        outside = jnp.asarray(labels) < 0
        labels = jnp.where(outside, 0, labels)
        values = entry.function(student, labels, axis=axis, where=where, **parameters)
        return jnp.where(outside, 0, values)
    function, powers = entry.parts or (entry.function, (entry.temperature_power,))
    if isinstance(teacher, targets.Samples):
        values = _mean_over_samples(entry, parameters, inputs)
        return values * temperature**entry.temperature_power
    if isinstance(teacher, targets.Labels | targets.TopK):
        student, teacher = _coarse(entry, parameters, inputs)
        axis, where = -1, None
    elif isinstance(teacher, targets.Restricted) and entry.acceptance:
        student, teacher = _with_rest(entry, inputs)
        function, axis, where = entry.acceptance, -1, None
    else:
        if isinstance(teacher, targets.Restricted):
            teacher = teacher.logits
        student, teacher = (_at_temperature(x, temperature) for x in (student, teacher))
    values = function(student, teacher, axis=axis, where=where, **parameters)
    values = values if entry.parts else (values,)
    return sum(value * temperature**power for value, power in zip(values, powers, strict=True))


def _at_temperature(logits, temperature):
    logits = jnp.asarray(logits)
    if isinstance(temperature, (int, float)) and temperature == 1:
        return logits
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature


def _student_rows(inputs):
    dtype = jnp.promote_types(inputs.student_logits.dtype, jnp.float32)
    student = classes_last(inputs.student_logits, dtype=dtype, axis=inputs.axis, where=inputs.where)
    return _at_temperature(student, inputs.temperature)


def _coarse(
    entry: Entry, parameters: dict[str, float], inputs: LossInputs
) -> tuple[jax.Array, jax.Array]:
    """Returns logits [..., k+1] of student and teacher on a target's classes and the rest."""
    if isinstance(inputs.teacher, targets.TopK):
        if not entry.coarsens:
            raise ValueError(
                f"`{entry.name}` looks at single classes, which a top-k target's tail hides."
            )
        if parameters.get("smoothing"):
            raise ValueError(
                f"`{entry.name}` with smoothing spreads over all classes, which a top-k target "
                "sums up."
            )
    student = _student_rows(inputs)
    target = targets.as_top_k(inputs.teacher, inputs.temperature, student.shape[:-1])
    return targets.coarse(student, target)


def _with_rest(entry: Entry, inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
    """Returns logits [..., K+1] of both sides; the last class is all that the student lacks."""
    student, teacher, _, temperature, axis, where = inputs
    if teacher.normalizer is None:
        raise ValueError(
            f"`{entry.name}` needs the teacher's true probabilities; give the `normalizer` of the "
            "restricted target."
        )
    targets.check_temperature(teacher.temperature, temperature)
    sides = (_at_temperature(x, temperature) for x in (student, teacher.logits))
    return targets.with_rest(*prepare(*sides, axis=axis, where=where), teacher.normalizer)


def _mean_over_samples(entry: Entry, parameters: dict[str, float], inputs: LossInputs) -> jax.Array:
    """Estimates the loss [...] by the mean over the teacher's samples."""
    samples, student = inputs.teacher, _student_rows(inputs)
    targets.check(samples.classes, samples.temperature, inputs.temperature)
    if samples.classes.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"samples must have rows {student.shape[:-1]}, got classes {samples.classes.shape}."
        )
    log_q = targets.at(student, samples.classes) - log_normalizer(student)
    if entry.name == "cross_entropy" and not parameters.get("smoothing"):
        return jnp.mean(-log_q, axis=-1)
    if entry.term is None:
        raise ValueError(
            f"`{entry.name}` is no mean over the teacher's samples, so that theirs is biased; "
            "give its logits."
        )
    if samples.log_probabilities is None:
        raise ValueError(
            f"`{entry.name}` needs the samples' `log_probabilities`; without them only "
            "cross_entropy is unbiased."
        )
    log_ratio = log_q - jax.lax.stop_gradient(samples.log_probabilities)
    return jnp.mean(_term_over_p(entry.term(**parameters), log_ratio), axis=-1)


def _rows_of_ratio(r):
    one = jnp.ones_like(r)
    return Rows(p=one, q=jnp.exp(r), r=r, excess=jnp.expm1(r), log_p=jnp.zeros_like(r), log_q=r)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _term_over_p(term: Term, r: jax.Array) -> jax.Array:
    """Returns φ/p, which depends on r = log(q/p) alone."""
    return term.value(_rows_of_ratio(r))


@_term_over_p.defjvp
def _term_over_p_jvp(term, primals, tangents):
    slope = term.pointwise or term.slope
    return _term_over_p(term, *primals), slope(_rows_of_ratio(*primals)) * tangents[0]
