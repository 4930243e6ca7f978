"""What a mask argument does: which positions count, and by what the sum is divided."""

import math

import numpy as np

from jaxdiv.audit.inputs import Rows, joined, random_batch
from jaxdiv.audit.probe import CallError, Probe
from jaxdiv.audit.reduction import Reduction, row_values
from jaxdiv.audit.result import Finding, finding
from jaxdiv.audit.structure import Structure


def examine(
    probe: Probe, reduction: Reduction, seen: Structure
) -> tuple[str | None, list[Finding]]:
    """The reduction under a mask (None: as it was), and findings; `seen`: of positions."""
    mask = ragged(probe.lead)
    try:
        shown = random_batch(probe.lead, probe.classes, seed=7)._replace(mask=mask[None])
        shape = probe.values(shown).shape[1:]
        weighed = _weights(probe, mask, reduction, seen.ahead)
    except CallError as error:
        return None, [finding("mask_unclear", ("a ragged mask", "a value", str(error)))]
    if weighed is None:
        return None, []
    weights, added = weighed
    rows_left = len(
        [size for i, size in enumerate(shape) if i != reduction.by_class and size != 1]
    ) == len(probe.lead)
    name, findings = _interpret(weights, mask, rows_left, reduction, seen)
    if not probe.mask_keeps and not probe.mask_drops:
        told = (
            "a mask of ones, and one of zeros",
            "each position's loss, and none",
            "none, and each position's loss",
        )
        findings = [finding("mask_inverted", told), *findings]
    if added and not findings:
        told = (
            "random batches under one ragged mask",
            "weighted rows alone",
            "a constant more, of masked positions",
        )
        findings = [finding("mask_leak", told)]
    return name, findings + list(_edges(probe, shown, reduction))


def _weights(probe, mask, reduction, ahead):
    """The weight, [*lead], of each position's loss in the output under a mask, and whether more is
    added.

    The output is linear in the rows' losses: they are known from batches in which a row stands
    everywhere, and batches of different rows tell the weights. None if not finite.
    """
    n = int(np.prod(probe.lead))
    count = 3 * n
    batches = joined([random_batch(probe.lead, probe.classes, seed=200 + i) for i in range(count)])
    masked = batches._replace(
        mask=np.broadcast_to(mask, batches.mask.shape).astype(np.float32),
        labels=np.roll(batches.labels, ahead, -1),
    )
    rows = Rows(
        batches.student.reshape(count * n, -1),
        batches.teacher.reshape(count * n, -1),
        batches.labels.reshape(count * n),
        np.zeros(count * n, int),
    )
    alone = row_values(probe, rows, reduction).reshape(count, n)
    got = probe.values(masked)
    got = got.reshape(count, -1).sum(-1)
    if not (np.all(np.isfinite(got)) and np.all(np.isfinite(alone))):
        return None
    *weights, added = np.linalg.lstsq(
        np.concatenate([alone, np.ones((count, 1))], -1), got, rcond=None
    )[0]
    weights = np.array(weights)
    weights[np.abs(weights) < 2e-3 * np.abs(weights).max()] = 0
    return weights.reshape(probe.lead), abs(added) > 5e-3 * np.abs(got).mean()


def ragged(lead: tuple[int, ...]) -> np.ndarray:
    """1 for the first positions of each sequence, fewer of the second."""
    lengths = np.array([lead[-1] - 1, lead[-1] - 3]) if len(lead) > 1 else np.array([lead[-1] - 2])
    mask = (np.arange(lead[-1]) < lengths[:, None]).astype(np.float32)
    mask[0, 0] = 0 if len(lead) > 1 else 1
    return mask.reshape(lead)


def _interpret(weights, mask, rows_left, reduction, seen):
    """(reduction's name, findings) of the weights that positions have."""
    support = (weights != 0).astype(float)
    told = ("a ragged mask", f"weights at {_drawn(mask)}", f"at {_drawn(support)}")
    for kept, code in _right_supports(mask, seen):
        if np.array_equal(support, kept):
            name, findings = (None, []) if rows_left else _denominator(weights, kept)
            return name, [*findings, finding(code, told)] if code else findings
    name = None if rows_left else "token mean"
    if np.all(support == 1) and np.ptp(weights) < 5e-3 * np.abs(weights).max():
        return reduction.name, [finding("mask_ignored", told)]
    if np.array_equal(support, 1 - mask):
        return name, [finding("mask_inverted", told)]
    if any(_is_shifted(support, mask, by) for by in (1, -1)):
        return name, [finding("mask_shifted", told)]
    if np.all(support <= mask):
        return name, [finding("mask_unclear", told)]
    return name, [finding("mask_leak", told)]


def _right_supports(mask, seen):
    """(positions that may count, code of a note): where the last is dropped, a mask of tokens is
    read one ahead."""
    yield mask, None
    if seen.dropped == 1:
        last = np.arange(mask.shape[-1]) < mask.shape[-1] - 1
        yield mask * last, None
        yield np.roll(mask, -1, -1) * last, None if seen.ahead else "mask_of_next"


def _is_shifted(support, mask, by):
    """Whether positions count where the mask of the one before or after is 1, the end aside."""
    moved = np.roll(mask, by, -1)
    inner = slice(1, None) if by > 0 else slice(None, -1)
    return np.array_equal(support[..., inner], moved[..., inner]) and not np.array_equal(
        moved, mask
    )


def _drawn(mask):
    return " ".join("".join(str(int(m)) for m in row) for row in np.atleast_2d(mask))


def _denominator(weights, mask):
    """By what kept positions are divided."""
    kept = weights[mask == 1]
    by_sequence = np.atleast_2d(mask).sum(-1)
    sequences = len(by_sequence)
    told = ("a ragged mask, weight of a kept position", f"1/{int(mask.sum())}", float(kept[0]))
    if np.ptp(kept) > 5e-3 * np.abs(kept).max():
        shares = np.atleast_2d(weights).sum(-1)
        for name, whole in (("sequence mean", 1 / sequences), ("sum of sequence means", 1.0)):
            if np.allclose(shares, whole, rtol=5e-3):
                return name, []
        return "not known", [finding("mask_unclear", told)]
    ways = {
        "token mean": 1 / mask.sum(),
        "sum": 1.0,
        "mask_count": 1 / mask.size,
        "batchmean": 1 / sequences,
    }
    name = next(
        (name for name, weight in ways.items() if math.isclose(kept[0], weight, rel_tol=5e-3)), None
    )
    if name == "mask_count":
        return "token mean", [finding("mask_count", told)]
    return (name, []) if name else ("not known", [finding("mask_unclear", told)])


def _edges(probe, shown, reduction):
    """NaN at masked positions, and masks without any position."""
    where = (shown.mask == 0)[..., None]
    broken = shown._replace(
        student=np.where(where, np.nan, shown.student).astype(np.float32),
        teacher=np.where(where, np.nan, shown.teacher).astype(np.float32),
    )
    try:
        values = probe.values(broken)
        if (
            not np.all(np.isfinite(values))
            and np.all(np.isfinite(probe.values(shown)))
            and values.ndim == 1
        ):
            yield finding(
                "mask_nan",
                ("NaN logits at masked positions", "a finite value", float(values.ravel()[0])),
            )
        empty = probe.values(shown._replace(mask=np.zeros_like(shown.mask)))
        if not np.all(np.isfinite(empty)):
            got = float(empty.ravel()[0])
            yield finding("empty_mask", ("a mask of zeros", "0", got), got=f"{got:g}")
    except CallError:
        return
