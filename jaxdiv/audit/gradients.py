"""What reaches the student and the teacher: against the menu's own gradient, and against the
value's slope."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.audit.identify import Fit
from jaxdiv.audit.inputs import Rows, joined, random_batch, tiled
from jaxdiv.audit.menu import Candidate
from jaxdiv.audit.probe import Probe
from jaxdiv.audit.reduction import Reduction, row_values
from jaxdiv.audit.result import Finding, finding
from jaxdiv.divergences.loss import get

_STEP = 2e-2
_ROWS = 40  # of one call of the menu's own loss
_NODES = 12  # of Gauss's rule: more digits than float32


def examine(
    probe: Probe, rows: Rows, reduction: Reduction, fit: Fit | None, by_row: bool
) -> list[Finding]:
    """Who gets a gradient and, where `by_row`, each row's loss being its own, whether it is the
    right one."""
    if not probe.differentiable:
        return [
            finding(
                "gradient_unseen", ("any", "gradients by student and teacher", "none to be had")
            )
        ]
    told = "the gradient's largest entry"
    size_s, size_t = (
        float(np.nanmax(np.abs(side), initial=0)) for side in probe.gradients(_batches(probe))
    )
    if size_s <= 1e-6 * size_t or size_s < 1e-9:
        if size_t > 1e-9:
            got = f"0, and by the teacher {size_t:.4g}"
            return [finding("swapped_arguments", (f"{told}, by the student", "not 0", got))]
        return [finding("no_gradient", (f"{told}, by the student", "not 0", "0"))]
    found = []
    if probe.takes_teacher and size_t > 1e-5 * size_s:
        found.append(finding("teacher_not_detached", (f"{told}, by the teacher", "0", size_t)))
    if by_row:
        found += _against_value(
            probe, rows, reduction, fit, row_gradients(probe, rows, reduction)[0]
        )
    return found


def _batches(probe):
    return joined([random_batch(probe.lead, probe.classes, seed=70 + i) for i in range(4)])


def row_gradients(probe: Probe, rows: Rows, reduction: Reduction) -> tuple[np.ndarray, np.ndarray]:
    """Of each row's value by student and by teacher, [K, V]."""
    inputs = tiled(rows, probe.lead)
    sides = probe.gradients(inputs)
    outputs = np.prod(
        [s for i, s in enumerate(reduction.shape) if i != reduction.by_class], dtype=float
    )
    axes = tuple(range(1, 1 + len(probe.lead)))
    return tuple(side.sum(axes) / (outputs * reduction.unit) for side in sides)


def integrated(probe: Probe, rows: Rows, reduction: Reduction) -> np.ndarray | None:
    """Each row's value [K] less that of its teacher's first student, from gradients along the way
    between the two."""
    if not probe.differentiable:
        return None
    first = rows.student[np.searchsorted(rows.groups, rows.groups)]
    away = rows.student - first
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    stops = [
        rows._replace(student=(first + (1 + node) / 2 * away).astype(np.float32)) for node in nodes
    ]
    whole = Rows(*(np.concatenate(parts) for parts in zip(*stops, strict=True)))
    slopes = row_gradients(probe, whole, reduction)[0].reshape(_NODES, *away.shape)
    return np.einsum("n,nkv,kv->k", shares / 2, slopes, away)


def expected_gradient(fit: Fit, rows: Rows) -> np.ndarray:
    """Of the menu's own loss by the student, [K, V]."""
    return _expected(fit, rows)[1]


def expected_values(fit: Fit, rows: Rows) -> np.ndarray:
    """Of the menu's own loss, [K], exact at the edges; -inf marks classes that do not exist."""
    return _expected(fit, rows)[0]


def _expected(fit, rows):
    """Values and gradients, from calls of one shape, so that one compilation serves."""
    function = _menu_function(fit.parts, fit.temperature)
    count, found = len(rows.labels), []
    for start in range(0, count, _ROWS):
        some = rows.take(np.minimum(np.arange(start, start + _ROWS), count - 1))
        (_, values), slopes = function(some.student, some.teacher, some.labels)
        found.append((np.asarray(values, np.float64), np.asarray(slopes, np.float64)))
    return tuple(np.concatenate(parts)[:count] for parts in zip(*found, strict=True))


@functools.lru_cache(maxsize=16)
def _menu_function(parts, temperature):
    losses = [
        (get(exact_text(candidate)), weight / temperature**candidate.power)
        for candidate, weight in parts
    ]

    def summed(student, teacher, labels):
        values = sum(
            weight * loss(student, teacher, labels=labels, temperature=temperature)
            for loss, weight in losses
        )
        return jnp.sum(values), values

    return jax.jit(jax.value_and_grad(summed, has_aux=True))


def exact_text(candidate: Candidate) -> str:
    inside = ", ".join(f"{key}={_exact(value)}" for key, value in candidate.parameters)
    return f"{candidate.name}({inside})" if inside else candidate.name


def _exact(value):
    return str(int(value)) if value == int(value) else repr(float(value))


def _against_value(probe, rows, reduction, fit, student):
    """The gradient against the menu's, and, where it is another, against differences of the
    value."""
    if fit is not None and fit.clean:
        expected = expected_gradient(fit, rows)
        error = _distance(student, expected)
        if error < 2e-3:
            return
        adaptive = _is_slope(probe, rows, reduction, student)
        code = "gradient_through_weight" if adaptive else "wrong_gradient"
        worst = np.unravel_index(np.argmax(np.abs(student - expected)), student.shape)
        yield finding(code, ("ordinary rows, the entry most off", expected[worst], student[worst]))
    elif not _is_slope(probe, rows, reduction, student):
        yield finding("wrong_gradient", ("ordinary rows", "the slope of the value", "another"))


def _distance(got, expected):
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-30))


def _is_slope(probe, rows, reduction, student):
    """Whether the gradient agrees with central differences along a random direction in most rows
    (kinks aside)."""
    draw = np.random.default_rng(17)
    away = draw.normal(size=rows.student.shape)
    away /= np.linalg.norm(away, axis=-1, keepdims=True)
    ahead, behind = (
        row_values(
            probe, rows._replace(student=(rows.student + step * away).astype(np.float32)), reduction
        )
        for step in (_STEP, -_STEP)
    )
    slope, told = (ahead - behind) / (2 * _STEP), (student * away).sum(-1)
    size = np.sqrt(np.mean(slope**2)) + 1e-30
    return float(np.median(np.abs(slope - told)) / size) < 1e-2
