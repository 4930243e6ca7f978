"""One loss of a sum, from whatever the teacher gives: rows, rows of summed classes, or samples."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiv import targets
from jaxdiv.divergences.entry import Entry
from jaxdiv.divergences.inputs import classes_last
from jaxdiv.divergences.rows import Rows, log_normalizer
from jaxdiv.divergences.terms import Term


class Given(NamedTuple):
    """What a loss is called with; see `Loss.__call__`."""

    student_logits: jax.Array
    teacher: Any
    labels: jax.Array | None
    temperature: float
    axis: int
    where: jax.Array | None


def evaluate(entry: Entry, parameters: dict[str, float], given: Given) -> jax.Array:
    """One value a row, [...], with the temperature's factor.

    Raises:
      ValueError: if the loss can't be had from what the teacher gives.
    """
    if entry.target == "":
        return entry.function(
            given.student_logits, axis=given.axis, where=given.where, **parameters
        )
    if entry.target == "labels":
        return entry.function(
            given.student_logits, given.labels, axis=given.axis, where=given.where, **parameters
        )
    if isinstance(given.teacher, targets.Samples):
        return (
            _mean_over_samples(entry, parameters, given)
            * given.temperature**entry.temperature_power
        )
    if isinstance(given.teacher, targets.Labels | targets.TopK):
        return _of_rows(entry, parameters, given.temperature, *_coarse(entry, parameters, given))
    student, teacher = (
        _heated(logits, given.temperature) for logits in (given.student_logits, given.teacher)
    )
    return _of_rows(entry, parameters, given.temperature, student, teacher, given.axis, given.where)


def _heated(logits, temperature):
    logits = jnp.asarray(logits)
    if isinstance(temperature, (int, float)) and temperature == 1:
        return logits
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature


def _of_rows(entry, parameters, temperature, student, teacher, axis=-1, where=None):
    function, powers = entry.parts or (entry.function, (entry.temperature_power,))
    values = function(student, teacher, axis=axis, where=where, **parameters)
    values = values if entry.parts else (values,)
    return sum(value * temperature**power for value, power in zip(values, powers, strict=True))


def _student_rows(given):
    dtype = jnp.promote_types(given.student_logits.dtype, jnp.float32)
    student = classes_last(given.student_logits, dtype=dtype, axis=given.axis, where=given.where)
    return _heated(student, given.temperature)


def _coarse(entry, parameters, given):
    if isinstance(given.teacher, targets.TopK):
        if not entry.coarsens:
            raise ValueError(
                f"`{_name(entry)}` looks at single classes, which a top-k target's tail hides."
            )
        if parameters.get("smoothing"):
            raise ValueError(
                f"`{_name(entry)}` with smoothing spreads over all classes, which a top-k target sums up."
            )
    student = _student_rows(given)
    return targets.coarse(
        student, targets.as_top_k(given.teacher, given.temperature, student.shape[:-1])
    )


def _mean_over_samples(entry, parameters, given):
    samples, student = given.teacher, _student_rows(given)
    targets.check(samples.classes, samples.temperature, given.temperature)
    if samples.classes.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"samples must have rows {student.shape[:-1]}, got classes {samples.classes.shape}."
        )
    log_q = targets.at(student, samples.classes) - log_normalizer(student)
    return jnp.mean(_of_sample(entry, parameters, log_q, samples.log_probabilities), axis=-1)


def _of_sample(entry, parameters, log_q, log_p):
    name = _name(entry)
    if name == "cross_entropy" and not parameters.get("smoothing"):
        return -log_q
    if entry.term is None:
        raise ValueError(
            f"`{name}` is no mean over the teacher's samples, so that theirs is biased; give its logits."
        )
    if log_p is None:
        raise ValueError(
            f"`{name}` needs the samples' `log_probabilities`; without them only cross_entropy is unbiased."
        )
    return _ratio(entry.term(**parameters), log_q - jax.lax.stop_gradient(log_p))


def _name(entry):
    return entry.function.__name__


def _rows_of_ratio(r):
    one = jnp.ones_like(r)
    return Rows(p=one, q=jnp.exp(r), r=r, excess=jnp.expm1(r), log_p=jnp.zeros_like(r), log_q=r)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _ratio(term: Term, r: jax.Array) -> jax.Array:
    """φ/p, which depends on r = log(q/p) alone."""
    return term.value(_rows_of_ratio(r))


@_ratio.defjvp
def _ratio_jvp(term, primals, tangents):
    slope = term.pointwise or term.slope
    return _ratio(term, *primals), slope(_rows_of_ratio(*primals)) * tangents[0]
