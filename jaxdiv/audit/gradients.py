"""Gradients of student and teacher, against the registry's own and the value's slope."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.audit.calls import Probe
from jaxdiv.audit.identify import Fit
from jaxdiv.audit.inputs import ProbeRows, join, random_batch
from jaxdiv.audit.reduction import Reduction
from jaxdiv.audit.result import Finding, finding
from jaxdiv.divergences.loss import get

_STEP = 2e-2
_ROWS = 40  # of one call of the registry's loss
_NODES = 12  # of Gauss's rule: more digits than float32


def gradient_findings(
    probe: Probe, rows: ProbeRows, reduced: Reduction, fit: Fit | None, by_row: bool
) -> Iterator[Finding]:
    """Yields findings on where gradients flow and, for a known loss, on their values.

    Args:
      probe: the loss.
      rows: ordinary rows.
      reduced: its reduction.
      fit: the loss as identified.
      by_row: whether each row's gradient can be seen alone.
    """
    if not probe.differentiable:
        yield finding("gradient_unseen", ("any", "gradients by both sides", "none to be had"))
        return
    batches = join([random_batch(probe.lead, probe.classes, seed=70 + i) for i in range(4)])
    by_student, by_teacher = (
        float(np.nanmax(np.abs(side), initial=0)) for side in probe.gradients(batches)
    )
    entry = "the gradient's largest entry, by the student", "not 0"
    if by_student <= 1e-6 * by_teacher or by_student < 1e-9:
        swapped = by_teacher > 1e-9
        got = f"0, and by the teacher {by_teacher:.4g}" if swapped else "0"
        yield finding("swapped_arguments" if swapped else "no_gradient", (*entry, got))
        return
    if probe.takes("teacher") and by_teacher > 1e-5 * by_student:
        evidence = "the gradient's largest entry, by the teacher", "0", by_teacher
        yield finding("teacher_not_detached", evidence)
    if by_row and fit is not None and fit.is_right:
        yield from _against_registry(probe, rows, reduced, fit)


def _against_registry(
    probe: Probe, rows: ProbeRows, reduced: Reduction, fit: Fit
) -> Iterator[Finding]:
    got, expected = reduced.row_gradients(probe, rows), registry(fit, rows)[1]
    if np.linalg.norm(got - expected) < 2e-3 * np.linalg.norm(expected):
        return
    code = "gradient_through_weight" if _is_slope(probe, rows, reduced, got) else "wrong_gradient"
    worst = np.unravel_index(np.argmax(np.abs(got - expected)), got.shape)
    yield finding(code, ("ordinary rows, the entry most off", expected[worst], got[worst]))


def _is_slope(probe: Probe, rows: ProbeRows, reduced: Reduction, gradients: np.ndarray) -> bool:
    """Returns whether the gradient is the value's central difference in most rows, kinks aside."""
    away = np.random.default_rng(17).normal(size=rows.student.shape)
    away /= np.linalg.norm(away, axis=-1, keepdims=True)
    ahead, behind = (
        reduced.row_values(probe, rows._replace(student=np.float32(rows.student + step * away)))
        for step in (_STEP, -_STEP)
    )
    slope = (ahead - behind) / (2 * _STEP)
    size = np.sqrt(np.mean(slope**2)) + 1e-30
    return float(np.median(np.abs(slope - (gradients * away).sum(-1))) / size) < 1e-2


def integrate(probe: Probe, rows: ProbeRows, reduced: Reduction) -> np.ndarray | None:
    """Returns each row's value [K] less that of its teacher's first student, from gradients.

    The gradients are integrated along the way between the two students: a term of the teacher that
    is NaN doesn't matter.
    """
    if not probe.differentiable:
        return None
    first = rows.student[np.searchsorted(rows.groups, rows.groups)]
    away = rows.student - first
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    stops = [rows._replace(student=np.float32(first + (1 + x) / 2 * away)) for x in nodes]
    whole = ProbeRows(*(np.concatenate(parts) for parts in zip(*stops, strict=True)))
    slopes = reduced.row_gradients(probe, whole).reshape(_NODES, *away.shape)
    return np.einsum("n,nkv,kv->k", shares / 2, slopes, away)


def registry(fit: Fit, rows: ProbeRows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values [K] and gradients [K, V] of the registry's own loss, at the edges too."""
    function = _registry_function(fit.parts, fit.temperature)
    count, chunks = len(rows.labels), []
    for start in range(0, count, _ROWS):
        some = rows.take(np.minimum(np.arange(start, start + _ROWS), count - 1))
        (_, values), slopes = function(some.student, some.teacher, some.labels)
        chunks.append((np.asarray(values, np.float64), np.asarray(slopes, np.float64)))
    return tuple(np.concatenate(parts)[:count] for parts in zip(*chunks, strict=True))


@functools.lru_cache(maxsize=16)
def _registry_function(parts: tuple, temperature: float) -> Callable:
    losses = [(get(c.exact_text), weight / temperature**c.power) for c, weight in parts]

    def total(student, teacher, labels):
        values = sum(
            weight * loss(student, teacher, labels=labels, temperature=temperature)
            for loss, weight in losses
        )
        return jnp.sum(values), values

    return jax.jit(jax.value_and_grad(total, has_aux=True))
