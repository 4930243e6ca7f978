"""The effect of a mask argument: the positions that count, and the divisor of their sum."""

import math
from collections.abc import Iterator

import numpy as np

from jaxdiv.audit.calls import CallError, Probe
from jaxdiv.audit.inputs import Batch, ProbeRows, join, random_batch
from jaxdiv.audit.positions import Structure
from jaxdiv.audit.reduction import Reduction
from jaxdiv.audit.result import Finding, finding


def under_mask(
    probe: Probe, reduced: Reduction, layout: Structure
) -> tuple[str | None, list[Finding]]:
    """Returns the reduction's name under a mask (None: as without one), and findings."""
    mask = np.ones(probe.lead, np.float32)  # ragged: fewer positions of the second sequence
    mask[..., -1] = 0
    if mask.ndim > 1:
        mask[0, 0], mask[1:, -3:] = 0, 0
    try:
        one = random_batch(probe.lead, probe.classes, seed=7)._replace(mask=mask[None])
        shape = probe.values(one).shape[1:]
        weights, leak = _weights(probe, mask, reduced, layout.ahead)
    except CallError as error:
        return None, [finding("mask_unclear", ("a ragged mask", "a value", str(error)))]
    if weights is None:
        return None, []
    axes = [size for i, size in enumerate(shape) if i != reduced.class_axis and size != 1]
    one_a_row = len(axes) == len(probe.lead)
    name, findings = _interpret(weights, mask, one_a_row, reduced, layout)
    if not probe.mask_keeps and not probe.mask_drops:
        evidence = "a mask of ones, and one of zeros", "each loss, and none", "none, and each loss"
        findings = [finding("mask_inverted", evidence), *findings]
    if leak and not findings:
        evidence = "batches under one ragged mask", "weighted rows alone", "a constant more"
        findings = [finding("mask_leak", evidence)]
    return name, [*findings, *_edges(probe, one)]


def _weights(
    probe: Probe, mask: np.ndarray, reduced: Reduction, ahead: int
) -> tuple[np.ndarray | None, bool]:
    """Returns the weight of each position's loss, [*lead], and whether more is added.

    The output is linear in the rows' losses. They are known from batches in which a row stands
    everywhere; batches of different rows then show the weights. None if not finite.
    """
    n = math.prod(probe.lead)
    count = 3 * n
    batches = join([random_batch(probe.lead, probe.classes, seed=200 + i) for i in range(count)])
    masked = batches._replace(
        mask=np.broadcast_to(mask, batches.mask.shape).astype(np.float32),
        labels=np.roll(batches.labels, ahead, -1),
    )
    single = batches.flatten()
    logits = (side.reshape(count * n, -1) for side in (single.student, single.teacher))
    rows = ProbeRows(*logits, single.labels.reshape(-1), np.zeros(count * n, int))
    alone = reduced.row_values(probe, rows).reshape(count, n)
    got = probe.values(masked).reshape(count, -1).sum(-1)
    if not (np.all(np.isfinite(got)) and np.all(np.isfinite(alone))):
        return None, False
    columns = np.concatenate([alone, np.ones((count, 1))], -1)
    *weights, added = np.linalg.lstsq(columns, got, rcond=None)[0]
    weights = np.array(weights)
    weights[np.abs(weights) < 2e-3 * np.abs(weights).max()] = 0
    return weights.reshape(probe.lead), bool(abs(added) > 5e-3 * np.abs(got).mean())


def _interpret(
    weights: np.ndarray, mask: np.ndarray, one_a_row: bool, reduced: Reduction, layout: Structure
) -> tuple[str | None, list[Finding]]:
    """Returns the reduction's name and the findings of the weights that positions have."""
    support = (weights != 0).astype(float)
    drawn = ("".join(np.char.mod("%d", part.ravel())) for part in (mask, support))
    evidence = "a ragged mask", *(f"weights at {text}" for text in drawn)
    for right, code in _right_supports(mask, layout):
        if np.array_equal(support, right):
            name, findings = (None, []) if one_a_row else _divisor(weights, right)
            return name, [*findings, finding(code, evidence)] if code else findings
    name = None if one_a_row else "token mean"
    if np.all(support == 1) and np.ptp(weights) < 5e-3 * np.abs(weights).max():
        return reduced.name, [finding("mask_ignored", evidence)]
    if np.array_equal(support, 1 - mask):
        code = "mask_inverted"
    elif any(
        np.array_equal(support[..., inner], np.roll(mask, by, -1)[..., inner])
        for by, inner in ((1, slice(1, None)), (-1, slice(None, -1)))
    ):
        code = "mask_shifted"
    else:
        code = "mask_unclear" if np.all(support <= mask) else "mask_leak"
    return name, [finding(code, evidence)]


def _right_supports(mask, layout) -> Iterator[tuple[np.ndarray, str | None]]:
    """Yields positions that may count, and the code of a note.

    Where the last position is dropped, a mask of tokens may be read one ahead.
    """
    yield mask, None
    if layout.dropped == 1:
        last = np.arange(mask.shape[-1]) < mask.shape[-1] - 1
        yield mask * last, None
        yield np.roll(mask, -1, -1) * last, None if layout.ahead else "mask_of_next"


def _divisor(weights: np.ndarray, mask: np.ndarray) -> tuple[str, list[Finding]]:
    """Returns the reduction's name by what the sum over positions is divided by."""
    inside = weights[mask == 1]
    sequences = len(np.atleast_2d(mask))
    evidence = "the weight of a position", f"1/{int(mask.sum())}", float(inside[0])
    if np.ptp(inside) > 5e-3 * np.abs(inside).max():
        shares = np.atleast_2d(weights).sum(-1)
        for name, whole in (("sequence mean", 1 / sequences), ("sum of sequence means", 1.0)):
            if np.allclose(shares, whole, rtol=5e-3):
                return name, []
        return "not known", [finding("mask_unclear", evidence)]
    names = {
        "token mean": 1 / mask.sum(),
        "sum": 1.0,
        "mask_count": 1 / mask.size,
        "batchmean": 1 / sequences,
    }
    for name, weight in names.items():
        if math.isclose(inside[0], weight, rel_tol=5e-3):
            is_count = name == "mask_count"
            return ("token mean", [finding(name, evidence)]) if is_count else (name, [])
    return "not known", [finding("mask_unclear", evidence)]


def _edges(probe: Probe, one: Batch) -> Iterator[Finding]:
    """Yields findings on NaN at masked positions, and on masks without any position."""
    outside = (one.mask == 0)[..., None]
    student, teacher = (
        np.where(outside, np.nan, side).astype(np.float32) for side in (one.student, one.teacher)
    )
    try:
        values = probe.values(one._replace(student=student, teacher=teacher))
        finite = np.all(np.isfinite(probe.values(one)))
        if values.ndim == 1 and finite and not np.all(np.isfinite(values)):
            evidence = "NaN logits at masked positions", "a finite value", float(values[0])
            yield finding("mask_nan", evidence)
        empty = probe.values(one._replace(mask=np.zeros_like(one.mask)))
        if not np.all(np.isfinite(empty)):
            got = float(empty.ravel()[0])
            yield finding("empty_mask", ("a mask of zeros", "0", got), got=f"{got:g}")
    except CallError:
        return
