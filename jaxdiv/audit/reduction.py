"""The reduction of rows to one number: growth with the batch, and what counts under a mask."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxdiv.audit.calls import CallError
from jaxdiv.audit.findings import Finding, finding
from jaxdiv.audit.inputs import Batch, ProbeRows, random_batch, tile
from jaxdiv.audit.layout import Subject, changes

# Names by the output's axes and the powers with which it grows along each axis of `lead`.
_NAMES = {
    "": {(1, 1): "sum", (0, 0): "token mean", (0, 1): "batchmean", (1,): "sum", (0,): "token mean"},
    "sequence": {
        (0, 0): "mean over positions, one value a sequence",
        (0, 1): "sum over positions, one value a sequence",
    },
    "position": {
        (0, 0): "mean over sequences, one value a position",
        (1, 0): "sum over sequences, one value a position",
    },
    "row": {(0, 0): "none", (0,): "none"},
}


def examine_reduction(subject: Subject) -> Subject:
    """Returns the reduction, from one row repeated to batches of different shapes."""
    probe, row = subject.probe, subject.rows.take(slice(0, 1))
    if not np.all(np.isfinite(probe.values(tile(row, probe.lead)))):  # it may take probabilities
        sides = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (row.student, row.teacher))
        row = ProbeRows(*sides, row.labels, row.groups)
    shape = probe.values(tile(row, probe.lead)).shape[1:]
    class_axis = next((i for i in reversed(range(len(shape))) if shape[i] == probe.classes), None)
    subject = replace(subject, shape=shape, class_axis=class_axis)
    axes = subject.axes
    by_row = len(axes) == len(probe.lead)
    subject = replace(subject, reduction="none" if by_row else None)
    if class_axis is not None:
        evidence = "a batch", "one value a row", f"an output of shape {shape}"
        subject = subject.adding(finding("elementwise", evidence))
    growth = _growth(subject, row) if probe.lead and subject.axis is None else None
    if growth is None:
        return subject
    powers, unit, counted = growth
    kind = "row" if by_row else "position" if axes else ""
    if kind == "position" and axes[0] == probe.lead[0]:
        kind = "sequence"
    name = _NAMES[kind].get(powers, "none, divided" if by_row else "unusual")
    evidence = "one row repeated to larger batches", "growth as a sum's or a mean's"
    if counted:
        evidence = (*evidence, f"{unit:.4g} of a mean over the positions that count")
        subject = subject.adding(finding("dropped_count", evidence, count=subject.dropped))
    elif powers not in _NAMES[kind] or name == "batchmean":
        evidence = (*evidence, "powers of [B, L]: " + ", ".join(map(str, powers)))
        code = "batchmean" if name == "batchmean" else "reduction_unusual"
        details = {"batch": powers[0] if len(powers) > 1 else 0, "length": powers[-1]}
        if not any(one.code == "batch_order" for one in subject.findings):
            subject = subject.adding(finding(code, evidence, **details))
    return replace(subject, reduction=name, unit=unit)


def _growth(subject: Subject, row: ProbeRows) -> tuple[tuple[int, ...], float, bool] | None:
    """Returns the powers with which the value grows along each axis of `lead`; None if unclear.

    Beside them, the value of a loss of 1 everywhere, and whether positions without loss count in
    the mean. The first axis grows by 3 and the last by 2 at once: products of small powers of the
    two are all different.
    """
    lead, dropped = subject.probe.lead, subject.dropped
    grown = tuple(size * f for size, f in zip(lead, (3, 2)[-len(lead) :], strict=True))
    try:
        outputs = [subject.probe.values(tile(row, shape)) for shape in (lead, grown)]
    except CallError:
        return None
    start, end = (float(subject.collapse(output)[0]) for output in outputs)
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


def examine_mask(subject: Subject) -> Subject:
    """Returns the reduction under a mask: which positions count, and what their sum is over."""
    probe = subject.probe
    mask = np.ones(probe.lead, np.float32)  # ragged: fewer positions of the second sequence
    mask[..., -1] = 0
    if mask.ndim > 1:
        mask[0, 0], mask[1:, -3:] = 0, 0
    try:
        rows, value, moved = changes(probe, mask, subject.ahead)
        first, second = subject.values(rows)
        weights = moved / (second - first)
    except CallError as error:
        evidence = "a ragged mask", "a value", str(error)
        return subject.adding(finding("mask_unclear", evidence))
    if not np.all(np.isfinite(weights)):
        return subject
    weights[np.abs(weights) < 2e-3 * np.abs(weights).max()] = 0
    name, findings = _interpret(subject, mask, weights)
    if not probe.mask_keeps and not probe.mask_drops:
        evidence = "a mask of ones, and one of zeros", "each loss, and none", "none, and each loss"
        findings = [finding("mask_inverted", evidence), *findings]
    if not findings and abs(value - first * weights.sum()) > 5e-3 * abs(value):
        evidence = "batches under one ragged mask", "weighted rows alone", "a constant more"
        findings = [finding("mask_leak", evidence)]
    one = random_batch(probe.lead, probe.classes, seed=7)._replace(mask=mask[None])
    return subject.adding(*findings, *_mask_edges(subject, one), reduction=name)


def _interpret(
    subject: Subject, mask: np.ndarray, weights: np.ndarray
) -> tuple[str | None, list[Finding]]:
    """Returns the reduction's name and the findings of the weights that positions have."""
    support = (weights != 0).astype(float)
    drawn = ("".join(np.char.mod("%d", part.ravel())) for part in (mask, support))
    evidence = "a ragged mask", *(f"weights at {text}" for text in drawn)
    by_row = len(subject.axes) == mask.ndim
    right = [(mask, None)]  # positions that may count, and the code of a note
    if subject.dropped == 1:  # a mask of tokens may be read one ahead
        last = np.arange(mask.shape[-1]) < mask.shape[-1] - 1
        ahead = np.roll(mask, -1, -1) * last
        right += [(mask * last, None), (ahead, None if subject.ahead else "mask_of_next")]
    for positions, code in right:
        if np.array_equal(support, positions):
            notes = [finding(code, evidence)] if code else []
            if by_row:
                return subject.reduction, notes
            name, findings = _divisor(weights, positions)
            return name, [*findings, *notes]
    shifted = (
        np.array_equal(support[..., inner], np.roll(mask, by, -1)[..., inner])
        for by, inner in ((1, slice(1, None)), (-1, slice(None, -1)))
    )
    if np.all(support == 1) and np.ptp(weights) < 5e-3 * np.abs(weights).max():
        code = "mask_ignored"
    elif np.array_equal(support, 1 - mask):
        code = "mask_inverted"
    elif any(shifted):
        code = "mask_shifted"
    else:
        code = "mask_unclear" if np.all(support <= mask) else "mask_leak"
    as_before = by_row or code == "mask_ignored"
    return subject.reduction if as_before else "token mean", [finding(code, evidence)]


def _divisor(weights: np.ndarray, mask: np.ndarray) -> tuple[str, list[Finding]]:
    """Returns the reduction's name by what the sum over positions is divided by."""
    inside, sequences = weights[mask == 1], len(np.atleast_2d(mask))
    evidence = "the weight of a position", f"1/{int(mask.sum())}", float(inside[0])
    each, shares = inside, np.atleast_2d(weights).sum(-1)
    names = {
        "token mean": 1 / mask.sum(),
        "sum": 1.0,
        "mask_count": 1 / mask.size,
        "batchmean": 1 / sequences,
    }
    if np.ptp(inside) > 5e-3 * np.abs(inside).max():
        each, names = shares, {"sequence mean": 1 / sequences, "sum of sequence means": 1.0}
    name = next((n for n, weight in names.items() if np.allclose(each, weight, rtol=5e-3)), None)
    if name == "mask_count":
        return "token mean", [finding(name, evidence)]
    return (name, []) if name else ("not known", [finding("mask_unclear", evidence)])


def _mask_edges(subject: Subject, one: Batch) -> Iterator[Finding]:
    """Yields findings on NaN at masked positions, and on masks without any position."""
    probe, outside = subject.probe, (one.mask == 0)[..., None]
    sides = (np.float32(np.where(outside, np.nan, side)) for side in (one.student, one.teacher))
    try:
        values, finite = probe.values(Batch(*sides, *one[2:])), np.isfinite(probe.values(one))
        if values.ndim == 1 and np.all(finite) and not np.all(np.isfinite(values)):
            evidence = "NaN logits at masked positions", "a finite value", float(values[0])
            yield finding("mask_nan", evidence)
        empty = probe.values(one._replace(mask=np.zeros_like(one.mask)))
        if not np.all(np.isfinite(empty)):
            got = float(empty.ravel()[0])
            yield finding("empty_mask", ("a mask of zeros", "0", got), got=f"{got:g}")
    except CallError:
        return
