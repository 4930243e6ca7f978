"""The reduction of rows to one number, from the output's shape and its growth with the batch."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from jaxdiv.audit.calls import CallError, Probe
from jaxdiv.audit.inputs import ProbeRows, tile
from jaxdiv.audit.positions import Structure
from jaxdiv.audit.result import Finding, finding

_NAMES = {
    (1, 1): ("sum", None),
    (0, 0): ("token mean", None),
    (0, 1): ("batchmean", "batchmean"),
    (1,): ("sum", None),
    (0,): ("token mean", None),
}
_ONE_A = {
    "sequence": {
        (0, 0): ("mean over positions, one value a sequence", None),
        (0, 1): ("sum over positions, one value a sequence", None),
    },
    "position": {
        (0, 0): ("mean over sequences, one value a position", None),
        (1, 0): ("sum over sequences, one value a position", None),
    },
}
_UNUSUAL = ("unusual", "reduction_unusual")


@dataclass(frozen=True)
class Reduction:
    """The output of a loss.

    Attributes:
      name: `none`, `sum`, `token mean`, `sequence mean` or in words; None if not known.
      unit: the output's mean over its axes is this times a row's loss.
      class_axis: the axis of the output that runs over classes, if there is one.
      shape: the output's shape.
      by_size: the factor that the number of classes brings, 1/V for a mean over them.
    """

    name: str | None
    unit: float
    class_axis: int | None
    shape: tuple[int, ...]
    findings: tuple[Finding, ...] = ()
    by_size: float = 1.0

    def collapse(self, values: np.ndarray) -> np.ndarray:
        """Returns each row's loss [K] of outputs [K, *out] from batches of one row."""
        if self.class_axis is not None:
            values = values.sum(self.class_axis + 1)
        return values.reshape(len(values), -1).mean(-1) / self.unit

    def row_values(self, probe: Probe, rows: ProbeRows, dtype=np.float32) -> np.ndarray:
        """Returns each row's loss, [K], from inputs in which it stands everywhere."""
        return self.collapse(probe.values(tile(rows, probe.lead), dtype))

    def row_gradients(self, probe: Probe, rows: ProbeRows) -> np.ndarray:
        """Returns the gradient of each row's loss by the student, [K, V]."""
        gradients = probe.gradients(tile(rows, probe.lead))[0]
        outputs = math.prod(s for i, s in enumerate(self.shape) if i != self.class_axis)
        axes = tuple(range(1, 1 + len(probe.lead)))
        return gradients.sum(axes) / (outputs * self.unit)


def reduction(probe: Probe, rows: ProbeRows, layout: Structure) -> Reduction:
    """Returns the reduction, from one row repeated to batches of different shapes."""
    row = rows.take(slice(0, 1))
    if not np.all(np.isfinite(probe.values(tile(row, probe.lead)))):  # it may take probabilities
        logits = row.student, row.teacher
        student, teacher = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in logits)
        row = row._replace(student=student, teacher=teacher)
    shape = probe.values(tile(row, probe.lead)).shape[1:]
    class_axis = next((i for i in reversed(range(len(shape))) if shape[i] == probe.classes), None)
    rest = tuple(size for i, size in enumerate(shape) if i != class_axis and size != 1)
    findings = []
    if class_axis is not None:
        evidence = "a batch", "one value a row", f"an output of shape {shape}"
        findings.append(finding("elementwise", evidence))
    plain = Reduction("none" if len(rest) == len(probe.lead) else None, 1.0, class_axis, shape)
    if not probe.lead or layout.axis is not None:
        return Reduction(plain.name, 1.0, class_axis, shape, tuple(findings))
    growth = _growth(probe, row, plain, layout.dropped)
    if growth is None:
        return Reduction(plain.name, 1.0, class_axis, shape, tuple(findings))
    powers, unit, counted = growth
    if len(rest) == len(probe.lead):
        name, code = ("none, divided", "reduction_unusual") if any(powers) else ("none", None)
    elif len(rest) == 1:
        kind = "sequence" if rest[0] == probe.lead[0] else "position"
        name, code = _ONE_A[kind].get(powers, _UNUSUAL)
    else:
        name, code = _NAMES.get(powers, _UNUSUAL)
    details = {"batch": powers[0] if len(powers) > 1 else 0, "length": powers[-1]}
    evidence = "one row repeated to larger batches", "growth as a sum's or a mean's"
    if counted:
        evidence = (*evidence, f"{unit:.4g} of a mean over the positions that count")
        findings.append(finding("dropped_count", evidence, count=layout.dropped))
    elif code and not any(one.code == "batch_order" for one in layout.findings):
        evidence = (*evidence, "powers of [B, L]: " + ", ".join(map(str, powers)))
        findings.append(finding(code, evidence, **details))
    return Reduction(name, unit, class_axis, shape, tuple(findings))


def _growth(
    probe: Probe, row: ProbeRows, plain: Reduction, dropped: int
) -> tuple[tuple[int, ...], float, bool] | None:
    """Returns the powers with which the value grows along each axis of `lead`; None if unclear.

    Beside them, the value of a loss of 1 everywhere, and whether positions without loss count in
    the mean. The first axis grows by 3 and the last by 2 at once: products of small powers of the
    two are all different.
    """
    lead = probe.lead
    grown = tuple(size * f for size, f in zip(lead, (3, 2)[-len(lead) :], strict=True))
    try:
        start, end = (
            float(plain.collapse(probe.values(tile(row, shape)))[0]) for shape in (lead, grown)
        )
    except CallError:
        return None
    if start == 0 or not math.isfinite(end / start):
        return None

    def unit(shape, powers, counted):
        count = (*shape[:-1], shape[-1] - dropped)
        return count[-1] / shape[-1] if counted else float(math.prod(map(pow, count, powers)))

    cases = [(powers, False) for powers in itertools.product((0, 1, -1, 2, -2), repeat=len(lead))]
    for powers, counted in cases + [((0,) * len(lead), True)] * (dropped > 0):
        ratio = unit(grown, powers, counted) / unit(lead, powers, counted)
        if math.isclose(ratio, end / start, rel_tol=2e-3):
            return powers, unit(lead, powers, counted), counted
    return None
