"""The weight of each position, and shifts between student, teacher and labels."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxdiv.audit.inputs import Batch, flattened, joined, random_rows, shaped, tiled
from jaxdiv.audit.precision import flat
from jaxdiv.audit.probe import Probe
from jaxdiv.audit.result import Finding, finding


class Shift(NamedTuple):
    """The student's position i meets i + `by` (0: none), and `dropped` positions a sequence meet
    none."""

    by: int = 0
    dropped: int = 0


def shift(matrix: np.ndarray, lead: tuple[int, ...]) -> Shift:
    """Where row i meets row i + k of the last axis of `lead` and no other, of which rows meet, [N,
    N]."""
    if np.any(np.diag(matrix)) or not np.any(matrix):
        return Shift()
    length = lead[-1]
    first, second = (np.stack(np.unravel_index(index, lead), -1) for index in np.nonzero(matrix))
    away = second - first
    steps = {int(step) for step in away[:, -1]}
    if np.any(away[:, :-1]) or len({step % length for step in steps}) > 1:
        return Shift()
    per_sequence = len(away) // int(np.prod(lead[:-1], dtype=int))
    return Shift(min(steps, key=abs), length - per_sequence)


def shift_findings(shifts: Mapping[str, Shift]) -> Iterator[Finding]:
    """A causal loss that shifts labels itself meets the next one, and drops the last position: no
    mistake."""
    for side, (by, dropped) in shifts.items():
        how = "cut" if dropped else "rolled"
        told = ("one row changed at a time", "position i meets i", f"i meets i{by:+d} ({how})")
        if side == "labels" and (by, dropped) == (1, 1):
            yield finding("shifts_labels", told)
        else:
            yield finding(
                "labels_shifted" if side == "labels" else "positions_shifted", told, shift=by
            )


def weights(probe: Probe) -> tuple[list[Finding], int]:
    """Findings on the weight of each position, and how many a sequence have none.

    One row stands everywhere; what changes when another takes its place at one position is that
    position's weight.
    """
    rows = random_rows(probe.classes, teachers=2, students=1, seed=11)
    base = tiled(rows, probe.lead)
    n = int(np.prod(probe.lead))
    whole = Batch(*(part[:1] for part in base))
    inputs = flattened(whole, n)
    other = flattened(Batch(*(part[1:] for part in base)), n)
    changed = []
    for i in range(n):
        parts = {name: getattr(inputs, name).copy() for name in Batch._fields}
        for name in ("student", "teacher", "labels"):
            parts[name][0, i] = getattr(other, name)[0, i]
        changed.append(Batch(**parts))
    values = flat(probe.values(shaped(joined([inputs, *changed]), probe.lead))).sum(-1)
    moved = (values[1:] - values[0]).reshape(probe.lead)
    largest = np.max(np.abs(moved))
    if not np.all(np.isfinite(values)) or largest < 1e-6:
        return [], 0
    moved = moved / moved.flat[np.argmax(np.abs(moved))]
    present = np.abs(moved) > 1e-3
    dropped = int((~present).sum(-1).max())
    return list(_weight_findings(moved, present, dropped)), dropped


def _weight_findings(moved, present, dropped):
    told = "one row changed at each position in turn"
    if moved.ndim > 1 and np.ptp(moved, axis=0).max() > 2e-3:
        by_sequence = ", ".join(f"{share:.3g}" for share in moved.sum(1) / moved.sum(1).max())
        yield finding("batch_order", (told, "equal weights of sequences", by_sequence))
    if dropped:
        yield finding(
            "positions_dropped", (told, "a change at each", f"none at {dropped}"), count=dropped
        )
    along = moved.reshape(-1, moved.shape[-1])[0]
    kept = along[present.reshape(-1, moved.shape[-1])[0]]
    if len(kept) and np.ptp(kept) > 2e-3:
        told_weights = ", ".join(f"{share:.3g}" for share in along)
        yield finding(
            "position_weights", (told, "equal weights", told_weights), weights=told_weights
        )
