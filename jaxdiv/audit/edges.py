"""Edges: rare classes, logits of ±30 to ±10,000, classes of -inf, equal sides, half precision."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxdiv.audit.calls import CallError, Probe
from jaxdiv.audit.codes import MISTAKE
from jaxdiv.audit.gradients import registry
from jaxdiv.audit.identify import Fit
from jaxdiv.audit.inputs import ProbeRows, random_rows
from jaxdiv.audit.mistakes import log_softmax
from jaxdiv.audit.reduction import Reduction
from jaxdiv.audit.result import Finding, finding

_EACH = 4  # rows of each edge
_RARE_LOGITS = (0.0, -9.0, -14.0, -18.5, -23.0, -27.6)  # probabilities down to 1e-12
_RARE = ("rare", "rare student", "rare teacher")
_SIZES = dict.fromkeys(_RARE, 27.0) | {"30": 30.0, "100": 100.0, "10000": 1e4}


class Edge(NamedTuple):
    """Rows at one edge, their values and gradients, and the registry's (NaN if unknown)."""

    rows: ProbeRows
    values: np.ndarray
    gradients: np.ndarray
    expected: np.ndarray
    slopes: np.ndarray

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


def edge_findings(probe: Probe, reduced: Reduction, fit: Fit | None) -> Iterator[Finding]:
    """Yields findings at the edges; values are compared if the registry's loss is known."""
    parts = _edge_rows(probe.classes)
    whole = ProbeRows(*(np.concatenate(side) for side in zip(*parts.values(), strict=True)))
    nothing = np.full(len(whole.labels), np.nan), np.zeros_like(whole.student)
    try:
        values = reduced.row_values(probe, whole)
        gradients = reduced.row_gradients(probe, whole) if probe.differentiable else nothing[1]
    except CallError as error:
        evidence = "logits at the edges", "a value", str(error)
        yield finding("does_not_run", evidence, error=str(error))
        return
    is_right = fit is not None and fit.is_right
    expected, slopes = registry(fit, whole) if is_right else nothing
    if is_right and fit.extra:
        expected = np.full_like(expected, np.nan)
    edges = {}
    for i, (name, rows) in enumerate(parts.items()):
        at = slice(i * _EACH, (i + 1) * _EACH)
        edges[name] = Edge(rows, values[at], gradients[at], expected[at], slopes[at])
    findings = [*_large(edges), *_gradients(edges), *_absent(edges)]
    if is_right and np.any(gradients != 0) and not any(one.severity == MISTAKE for one in findings):
        findings += _rare_gradients(edges, fit)
    yield from {one.code: one for one in reversed(findings)}.values()
    yield from _float16(probe, reduced, edges["30"])


def _large(edges: dict[str, Edge]) -> Iterator[Finding]:
    for name in (*_RARE, "30"):
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
            return


def _gradients(edges: dict[str, Edge]) -> Iterator[Finding]:
    for name in (*_RARE, "30", "100"):
        edge = edges[name]
        finite = np.isfinite(edge.values) & (np.abs(edge.values) < 1e30)
        if np.any(finite & ~np.all(np.isfinite(edge.gradients), -1)):
            where = f"at logits of ±{_SIZES[name]:g}"
            evidence = where, "a finite gradient", "NaN or infinity"
            yield finding("nan_gradient", evidence, where=where)
            return


def _rare_gradients(edges: dict[str, Edge], fit: Fit) -> Iterator[Finding]:
    """Compares gradients of rare classes, which a clamp cuts off, though values hardly show it."""
    pairs = []
    for name in ("rare student", "rare"):
        edge = edges[name]
        log_q = log_softmax(edge.rows.student / fit.temperature)
        rare = (log_q < -14.5) & (np.abs(edge.slopes) > 0.02 * np.exp(log_q))
        pairs += zip(edge.slopes[rare], edge.gradients[rare], strict=True)
    errors = np.array([abs(got / expected - 1) for expected, got in pairs])
    if len(errors) > 5 and np.median(errors) > 0.5:
        expected, got = pairs[int(np.argmax(errors))]
        evidence = "the gradient of a class of probability below 1e-6", expected, got
        yield finding("clamped_log", evidence, how=", which the gradient shows")


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


def _float16(probe: Probe, reduced: Reduction, edge: Edge) -> Iterator[Finding]:
    """Checks float16 inputs if the right value fits the type and float32 inputs did well."""
    rows = edge.rows.take(slice(0, 2))
    try:
        half = reduced.row_values(probe, rows, np.float16)
    except CallError:
        return
    single, expected = edge.values[:2], edge.expected[:2]
    fits = np.isfinite(single) & (np.abs(single) < 3e3) & ~(np.abs(expected) >= 3e3)
    if np.any(fits & ~np.isfinite(half)):
        i = int(np.flatnonzero(fits & ~np.isfinite(half))[0])
        evidence = "float16 logits of ±30", float(single[i]), float(half[i])
        yield finding("float16_overflow", evidence)


def laws(probe: Probe, reduced: Reduction, is_known: bool) -> Iterator[Finding]:
    """Yields what a comparison of logits without a softmax breaks: shifts, and its minimum.

    Regularizers and hard targets move the minimum, too, and norms see shifts, but not both by as
    much as the loss varies.

    Args:
      probe: a loss that isn't in the registry.
      reduced: its reduction.
      is_known: whether it is a comparison that needs no softmax.
    """
    rows, draw = random_rows(probe.classes, seed=21), np.random.default_rng(41)
    base = reduced.row_values(probe, rows)
    spread = float(np.std(base)) + 1e-30

    def changes(**sides):
        return reduced.row_values(probe, rows._replace(**sides)) - base

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
