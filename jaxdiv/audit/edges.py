"""Properties of a loss: gradients, and rare classes, large logits, -inf, equal sides, float16."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv.audit.calls import CallError
from jaxdiv.audit.findings import MISTAKE, Finding, finding
from jaxdiv.audit.fits import Fit
from jaxdiv.audit.formulas import log_softmax
from jaxdiv.audit.inputs import ProbeRows, join, random_batch, random_rows
from jaxdiv.audit.layout import Subject
from jaxdiv.divergences.loss import get

_STEP = 2e-2  # of a central difference
_ROWS = 40  # of one call of the registry's loss
_NODES = 12  # of Gauss's rule: more digits than float32
_EACH = 4  # rows of each edge
_RARE_LOGITS = (0.0, -9.0, -14.0, -18.5, -23.0, -27.6)  # probabilities down to 1e-12
# Names of edges with the size of their logits; the first four are ordinary in training.
_SIZES = {"rare": 27, "rare student": 27, "rare teacher": 27, "30": 30, "100": 100, "10000": 1e4}
_ORDINARY = tuple(_SIZES)[:4]


def gradient_findings(subject: Subject) -> Iterator[Finding]:
    """Yields findings on where gradients flow and, for a known loss, on their values."""
    probe, fit = subject.probe, subject.fit
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
    if subject.axis is not None or subject.coarse or fit is None or not fit.is_right:
        return
    rows = subject.rows
    got, expected = subject.gradients(rows), registry(fit, rows)[1]
    if np.linalg.norm(got - expected) < 2e-3 * np.linalg.norm(expected):
        return
    # It may still be the value's slope, by central differences in most rows, kinks aside.
    away = np.random.default_rng(17).normal(size=rows.student.shape)
    away /= np.linalg.norm(away, axis=-1, keepdims=True)
    ahead, behind = (
        subject.values(rows._replace(student=np.float32(rows.student + step * away)))
        for step in (_STEP, -_STEP)
    )
    slope = (ahead - behind) / (2 * _STEP)
    size = np.sqrt(np.mean(slope**2)) + 1e-30
    is_slope = np.median(np.abs(slope - (got * away).sum(-1))) / size < 1e-2
    worst = np.unravel_index(np.argmax(np.abs(got - expected)), got.shape)
    evidence = "ordinary rows, the entry most off", expected[worst], got[worst]
    yield finding("gradient_through_weight" if is_slope else "wrong_gradient", evidence)


def integrate(subject: Subject) -> np.ndarray | None:
    """Returns each row's value [K] less that of its teacher's first student, from gradients.

    The gradients are integrated along the way between the two students: a term of the teacher that
    is NaN doesn't matter.
    """
    if not subject.probe.differentiable:
        return None
    rows = subject.rows
    first = rows.student[np.searchsorted(rows.groups, rows.groups)]
    away = rows.student - first
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    stops = [rows._replace(student=np.float32(first + (1 + x) / 2 * away)) for x in nodes]
    slopes = subject.gradients(ProbeRows(*map(np.concatenate, zip(*stops, strict=True))))
    return np.einsum("n,nkv,kv->k", shares / 2, slopes.reshape(_NODES, *away.shape), away)


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


class Edge(NamedTuple):
    """Rows at one edge: values, gradients, and the registry's values (NaN if unknown)."""

    values: np.ndarray
    gradients: np.ndarray
    expected: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Marks of rows whose value is finite, as it should be, but another."""
        got, right = self.values, self.expected
        with np.errstate(invalid="ignore"):
            off = np.abs(got - right) > 3e-3 * np.abs(right) + 1e-5
            return np.isfinite(got) & np.isfinite(right) & (np.abs(right) < 1e30) & off

    def first(self, where: np.ndarray) -> tuple[float, float]:
        i = int(np.flatnonzero(where)[0])
        return float(self.expected[i]), float(self.values[i])


def _edge_rows(classes: int) -> dict[str, ProbeRows]:
    draw = np.random.default_rng(9)

    def noise(size=1.5):
        return size * draw.normal(size=(_EACH, classes))

    def rare():
        tiles = np.tile(np.resize(_RARE_LOGITS, classes), (_EACH, 1))
        return draw.permuted(tiles, axis=-1) + noise(0.3)

    def wide(size, spread=1.0):
        return size * np.sign(noise()) + noise(spread)

    def rows(student, teacher):
        labels = np.argmax(teacher, -1).astype(np.int32)
        return ProbeRows(np.float32(student), np.float32(teacher), labels, np.arange(_EACH))

    absent = np.where(np.arange(classes) % 4 == 1, -np.inf, 0)
    equal = noise()
    return {
        "rare": rows(rare(), rare()),
        "rare student": rows(rare(), noise()),
        "rare teacher": rows(noise(), rare()),
        "30": rows(wide(30), wide(30)),
        "100": rows(wide(100), wide(100)),
        "10000": rows(wide(1e4, 0.0), wide(1e4, 0.0)),
        "equal": rows(equal, equal),
        "on both sides": rows(noise() + absent, noise() + absent),
        "of the teacher": rows(noise(), noise() + absent),
    }


def edge_findings(subject: Subject) -> Iterator[Finding]:
    """Yields findings at the edges; values are compared if the registry's loss is known."""
    probe, fit, parts = subject.probe, subject.fit, _edge_rows(subject.probe.classes)
    whole = ProbeRows(*map(np.concatenate, zip(*parts.values(), strict=True)))
    try:
        values = subject.values(whole)
        gradients = np.zeros_like(whole.student)
        if probe.differentiable:
            gradients = subject.gradients(whole)
    except CallError as error:
        evidence = "logits at the edges", "a value", str(error)
        yield finding("does_not_run", evidence, error=str(error))
        return
    expected, slopes = np.full(len(values), np.nan), None
    if fit is not None and fit.is_right:
        right, slopes = registry(fit, whole)
        expected = expected if fit.extra else right
    pieces = (np.split(array, len(parts)) for array in (values, gradients, expected))
    edges = {name: Edge(*piece) for name, *piece in zip(parts, *pieces, strict=True)}
    findings = [*_large(edges), *_absent(edges)]
    # Rare classes' gradients tell of a clamp only where nothing else is wrong with gradients.
    detached = {one.code for one in subject.findings} & {"wrong_gradient", "no_gradient"}
    broken = any(one.severity == MISTAKE for one in findings)
    if slopes is not None and np.any(gradients != 0) and not (detached or broken):
        log_q = log_softmax(whole.student[: 2 * _EACH] / fit.temperature)
        slopes, cut = slopes[: 2 * _EACH], gradients[: 2 * _EACH]
        rare = (log_q < -14.5) & (np.abs(slopes) > 0.02 * np.exp(log_q))
        errors = np.abs(cut[rare] / slopes[rare] - 1)
        if len(errors) > 5 and np.median(errors) > 0.5:
            worst = int(np.argmax(errors))
            pair = float(slopes[rare][worst]), float(cut[rare][worst])
            evidence = "the gradient of a class of probability below 1e-6", *pair
            findings.append(finding("clamped_log", evidence, how=", which the gradient shows"))
    yield from {one.code: one for one in reversed(findings)}.values()
    # Float16 inputs, where the right value fits the type and float32 inputs did well.
    single, expected = edges["30"].values[:2], edges["30"].expected[:2]
    try:
        half = subject.values(parts["30"].take(slice(0, 2)), np.float16)
    except CallError:
        return
    fits = np.isfinite(single) & (np.abs(single) < 3e3) & ~(np.abs(expected) >= 3e3)
    for i in np.flatnonzero(fits & ~np.isfinite(half))[:1]:
        evidence = "float16 logits of ±30", float(single[i]), float(half[i])
        yield finding("float16_overflow", evidence)


def _large(edges: dict[str, Edge]) -> Iterator[Finding]:
    """Yields findings on rare classes and large logits."""
    for name in _ORDINARY:
        edge = edges[name]
        if np.any(edge.wrong):
            changed = "logits of ±30" if name == "30" else "probabilities of 1e-4 to 1e-12"
            yield finding("clamped_log", (changed, *edge.first(edge.wrong)), how="")
    for name, size in _SIZES.items():
        edge = edges[name]
        finite = (np.abs(edge.expected) < 1e30) | np.isnan(edge.expected)
        broken = np.isnan(edge.values) | (np.isinf(edge.values) & finite)
        if np.any(broken):
            harmless = size > 1e3 or (size > 30 and not np.any(np.isnan(edge.values)))
            code = "large_logits" if harmless else "nan_at_large_logits"
            evidence = f"logits of ±{size:g}", "a finite value", edge.first(broken)[1]
            yield finding(code, evidence, size=size)
            break
    for name in (*_ORDINARY, "100"):
        edge = edges[name]
        finite = np.isfinite(edge.values) & (np.abs(edge.values) < 1e30)
        if np.any(finite & ~np.all(np.isfinite(edge.gradients), -1)):
            where = f"at logits of ±{_SIZES[name]:g}"
            evidence = where, "a finite gradient", "NaN or infinity"
            yield finding("nan_gradient", evidence, where=where)
            return


def _absent(edges: dict[str, Edge]) -> Iterator[Finding]:
    """Yields findings on classes of -inf, and on sides that are equal."""
    for where in ("on both sides", "of the teacher"):
        edge, changed = edges[where], f"classes of -inf {where}"
        if np.any(np.isnan(edge.values)):
            yield finding("nan_at_minus_inf", (changed, "a value", "NaN"), where=where)
        elif np.any(edge.wrong):
            evidence = changed, *edge.first(edge.wrong)
            yield finding("wrong_at_minus_inf", evidence, where=where)
        elif np.any(np.isfinite(edge.values) & np.any(np.isnan(edge.gradients), -1)):
            evidence = changed, "a gradient without NaN", "NaN"
            yield finding("nan_gradient", evidence, where=f"where a class is -inf {where}")
    edge, changed = edges["equal"], "student and teacher of equal logits"
    if not np.all(np.isfinite(edge.values)):
        got = edge.first(~np.isfinite(edge.values))[1]
        yield finding("nan_at_equality", (changed, "a finite value", got))
    elif not np.all(np.isfinite(edge.gradients)):
        evidence = changed, "a gradient of 0", "NaN or infinity"
        yield finding("nan_gradient", evidence, where="where both sides are equal")


def law_findings(subject: Subject, is_known: bool) -> Iterator[Finding]:
    """Yields what a comparison of logits without a softmax breaks: shifts, and its minimum.

    Regularizers and hard targets move the minimum, too, and norms see shifts, but not both by as
    much as the loss varies.

    Args:
      subject: a loss that isn't in the registry.
      is_known: whether it is a comparison that needs no softmax.
    """
    probe, draw = subject.probe, np.random.default_rng(41)
    rows = random_rows(probe.classes, seed=21)
    base = subject.values(rows)
    spread = float(np.std(base)) + 1e-30

    def changes(**sides):
        return subject.values(rows._replace(**sides)) - base

    equal = changes(student=rows.teacher)
    near = [np.float32(rows.teacher + draw.normal(size=rows.teacher.shape)) for _ in range(4)]
    gain = max(np.max(equal - changes(student=student)) for student in near)
    shifted = {
        side: np.abs(changes(**{side: getattr(rows, side) + np.float32(1.7)})).max() > spread
        for side in ("student", "teacher")
    }
    if probe.takes("teacher") and shifted["student"] and gain > 0.7 * spread:
        evidence = "a student equal to the teacher, and others", "the least value", "a larger one"
        yield finding("not_least_at_equality", evidence)
        for side in (side for side in shifted if shifted[side] and not is_known):
            evidence = f"1.7 added to each logit of the {side}", "the same value", "another"
            yield finding("shift_variant", evidence, side=side)
    permuted = rows.student[:, draw.permutation(probe.classes)]
    if np.abs(changes(student=permuted)).max() < 1e-3 * spread:
        evidence = "classes of the student renumbered", "another value", "the same"
        yield finding("classes_unmatched", evidence)
