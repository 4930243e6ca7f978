"""Examines which rows of a batch a loss brings together, and holds what is known of the loss."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit.calls import Probe
from jaxdiv.audit.findings import Finding, finding
from jaxdiv.audit.fits import Fit, Observed
from jaxdiv.audit.inputs import Batch, ProbeRows, join, random_batch, random_rows, tile

_AXES = {2: ("sequences", "positions"), 1: ("rows",), 0: ()}
_FAR = 1e-3  # a change that is no rounding, relative to the largest


@dataclass(frozen=True)
class Subject:
    """A loss under examination, and what is known of it so far.

    Attributes:
      probe: the loss and the way to call it.
      rows: ordinary rows.
      findings: what is to be reported.
      axis: the axis of `lead` over which a softmax runs, if it isn't the classes.
      dropped: positions a sequence that give no loss.
      ahead: how many positions ahead of the student its labels stand.
      interacting: whether all rows of a batch influence each other.
      coarse: whether the value goes in steps, so that nothing finer can be seen.
      reduction: `none`, `sum`, `token mean`, `sequence mean` or in words; None if not known.
      unit: the output's mean over its axes is this times a row's loss.
      shape: the output's shape.
      class_axis: the axis of the output that runs over classes, if there is one.
      by_size: the factor that the number of classes brings, 1/V for a mean over them.
      fit: the loss, or the mistake in one, that it is.
    """

    probe: Probe
    rows: ProbeRows
    findings: tuple[Finding, ...] = ()
    axis: int | None = None
    dropped: int = 0
    ahead: int = 0
    interacting: bool = False
    coarse: bool = False
    reduction: str | None = None
    unit: float = 1.0
    shape: tuple[int, ...] = ()
    class_axis: int | None = None
    by_size: float = 1.0
    fit: Fit | None = None

    def adding(self, *findings: Finding, **changes) -> "Subject":
        return replace(self, findings=(*self.findings, *findings), **changes)

    @property
    def axes(self) -> list[int]:
        """The sizes of the output's axes other than the classes'."""
        return [size for i, size in enumerate(self.shape) if i != self.class_axis and size != 1]

    def collapse(self, values: np.ndarray) -> np.ndarray:
        """Returns each row's loss [K] of outputs [K, *out] from batches of one row."""
        if self.class_axis is not None:
            values = values.sum(self.class_axis + 1)
        return values.reshape(len(values), -1).mean(-1) / self.unit

    def values(self, rows: ProbeRows, dtype=np.float32) -> np.ndarray:
        """Returns each row's loss, [K], from inputs in which it stands everywhere."""
        return self.collapse(self.probe.values(tile(rows, self.probe.lead), dtype))

    def observe(self, rows: ProbeRows) -> Observed:
        return Observed(self.values(rows), rows)

    def gradients(self, rows: ProbeRows) -> np.ndarray:
        """Returns the gradient of each row's loss by the student, [K, V]."""
        gradients = self.probe.gradients(tile(rows, self.probe.lead))[0]
        axes = tuple(range(1, 1 + len(self.probe.lead)))
        return gradients.sum(axes) / (math.prod(self.axes) * self.unit)


def examine_layout(probe: Probe) -> Subject:
    """Returns how rows, positions and sequences enter the loss."""
    subject = Subject(probe, random_rows(probe.classes))
    one = random_batch(probe.lead, probe.classes).one()
    first, *others = (np.ravel(probe.value(one, eager=True)) for _ in range(3))
    for again in (other for other in others if not np.array_equal(first, other, equal_nan=True)):
        evidence = "one batch, called thrice", first[0], again[0]
        subject = replace(subject, findings=(finding("not_deterministic", evidence),))
    coarse = list(_steps(probe))
    if coarse or not probe.lead:
        return subject.adding(*coarse, coarse=bool(coarse))
    pairs = _interactions(probe)
    if pairs is None:
        return subject
    meeting = {side: matrix & ~np.eye(len(matrix), dtype=bool) for side, matrix in pairs.items()}
    if not any(map(np.any, meeting.values())):
        return _weigh_positions(subject)
    shifts = {side: _shift(pairs[side], probe.lead) for side in pairs if side != "student"}
    shifts = {side: (by, dropped) for side, (by, dropped) in shifts.items() if by}
    if not shifts or np.any(pairs["student"]):
        interplay, axis = _explain_interplay(probe, meeting)
        return subject.adding(interplay, axis=axis, interacting=axis is None)
    for side, (by, dropped) in shifts.items():
        got = f"i meets i{by:+d} ({'cut' if dropped else 'rolled'})"
        evidence = ("one row changed at a time", "position i meets i", got)
        # A causal loss may shift labels itself: it meets the next one and drops the last position.
        if side == "labels" and (by, dropped) == (1, 1):
            subject = subject.adding(finding("shifts_labels", evidence))
        else:
            code = "labels_shifted" if side == "labels" else "positions_shifted"
            subject = subject.adding(finding(code, evidence, shift=by))
    dropped = max(dropped for _, dropped in shifts.values())
    return replace(subject, dropped=dropped, ahead=shifts.get("labels", (0, 0))[0])


def _steps(probe: Probe) -> Iterator[Finding]:
    """Yields a finding if the value goes in steps, as after a cast to half precision.

    The largest logit of a row makes a move that float32 shows and a half type doesn't. Rows count
    if a larger move tells: a loss may not depend on that logit, or hardly.
    """
    small, large, ulps = 2e-5, 3e-2, 8 * 2.0**-24
    rows = random_rows(probe.classes, teachers=40, students=1, seed=81)
    shares = {}
    for side in ("student", "teacher") if probe.takes("teacher") else ("student",):
        values = []
        for move in (0, small, large):
            logits = getattr(rows, side).copy()
            top = logits.argmax(-1)[:, None]
            np.put_along_axis(logits, top, logits.max(-1)[:, None] * np.float32(1 + move), -1)
            moved = probe.values(tile(rows._replace(**{side: logits}), probe.lead))
            values.append(moved.reshape(len(moved), -1))
        base, near, far = values
        with np.errstate(invalid="ignore"):
            telling = np.any(np.abs(far - base) * small / large > ulps * np.abs(base), -1)
        if telling.sum() >= len(telling) / 4:
            shares[side] = np.mean(np.all(near == base, -1)[telling])
    sides = " and ".join(side for side, share in shares.items() if share > 0.7)
    if sides:
        got = f"none in {max(shares.values()):.0%} of trials"
        evidence = f"one logit moved by {small:.0e} of itself", "a change of the value", got
        digits = f"a small move of a logit of the {sides} changes nothing"
        yield finding("low_precision", evidence, digits=digits)


def _interactions(probe: Probe) -> dict[str, np.ndarray] | None:
    """Returns which student rows meet which rows of each side, [N, N]; None for non-finite values.

    Two rows meet if changing both is not the sum of changing each: a second difference of the loss.
    """
    whole, other = (random_batch(probe.lead, probe.classes, seed) for seed in (1, 2))
    labels = (whole.labels + 1 + other.labels % (probe.classes - 1)) % probe.classes
    other, places = other._replace(labels=labels), list(np.ndindex(probe.lead))
    sides = [side for side in ("student", "teacher", "labels") if probe.takes(side)]
    moved = {(side, j): whole.with_row(side, j, other) for side in sides for j in places}
    both = {
        (i, side, j): moved["student", i].with_row(side, j, other)
        for i in places
        for side, j in moved
        if (side, j) != ("student", i)
    }
    values = probe.values(join([whole, *moved.values(), *both.values()]))
    values = values.reshape(len(values), -1)
    if not np.all(np.isfinite(values)):
        return None
    change = dict(zip(moved, values[1:] - values[0], strict=False))
    matrices = {side: np.zeros((*probe.lead, *probe.lead)) for side in sides}
    for (i, side, j), value in zip(both, values[1 + len(moved) :], strict=True):
        together = value - values[0] - change["student", i] - change[side, j]
        matrices[side][(*i, *j)] = np.max(np.abs(together))
    largest = max(np.max(matrix) for matrix in matrices.values())
    least = max(_FAR * largest, 1e-5 * np.max(np.abs(values)))
    return {side: matrix.reshape(len(places), -1) > least for side, matrix in matrices.items()}


def _shift(matrix: np.ndarray, lead: tuple[int, ...]) -> tuple[int, int]:
    """Returns (k, positions a sequence that meet none) if row i meets i + k alone, else (0, 0)."""
    if np.any(np.diag(matrix)) or not np.any(matrix):
        return 0, 0
    first, second = (np.stack(np.unravel_index(index, lead), -1) for index in np.nonzero(matrix))
    away, length = second - first, lead[-1]
    steps = {int(step) for step in away[:, -1]}
    if np.any(away[:, :-1]) or len({step % length for step in steps}) > 1:
        return 0, 0
    return min(steps, key=abs), length - len(away) // math.prod(lead[:-1])


def _explain_interplay(probe: Probe, meeting: dict[str, np.ndarray]) -> tuple[Finding, int | None]:
    """Returns the finding of a softmax over another axis, and the axis; else of rows that meet.

    A softmax is seen by a constant, added along its axis, that changes nothing.
    """
    names, base = _AXES[len(probe.lead)], random_batch(probe.lead, probe.classes, seed=5)
    draw, leads = np.random.default_rng(3), range(len(probe.lead))
    axes, sides = (-1, *leads, None), ("student", "teacher")  # None: all axes at once
    inputs = [base]
    for side in sides:
        for axis in axes:
            shape = np.array(base.student.shape)
            shape[slice(None) if axis is None else axis + (axis >= 0)] = 1
            moved = getattr(base, side) + 2 * draw.normal(size=shape) + 1
            inputs.append(base._replace(**{side: np.float32(moved)}))
    values = probe.values(join(inputs))
    values = values.reshape(len(values), -1)
    same = np.max(np.abs(values - values[:1]), -1) < 2e-5 * (np.max(np.abs(values[0])) + 1e-6)
    for side, marks in zip(sides, same[1:].reshape(2, -1), strict=True):
        unseen = {axis for axis, mark in zip(axes, marks, strict=True) if mark}
        for axis in unseen.intersection(leads) if -1 not in unseen else ():
            changed = f"a constant added along the {names[axis]} of the {side}"
            evidence = changed, "another value", "the same value"
            return finding("softmax_axis", evidence, axis=names[axis]), axis
        if unseen == {None}:
            evidence = f"a constant added to one row of the {side}", "the same", "another value"
            return finding("softmax_axis", evidence, axis="whole batch"), None
    indices = np.concatenate([np.argwhere(matrix) for matrix in meeting.values()]).T
    first, second = (np.stack(np.unravel_index(index, probe.lead), -1) for index in indices)
    moved = np.any(first != second, axis=0)
    evidence = "two rows changed, alone and together", "the changes add up", "they don't"
    if len(probe.lead) > 1 and moved.sum() == 1:
        axis = f"different {names[int(np.argmax(moved))]}"
        return finding("rows_interact", evidence, axis=axis), None
    return finding("batch_dependence", evidence), None


def changes(
    probe: Probe, mask: np.ndarray | None = None, ahead: int = 0
) -> tuple[ProbeRows, float, np.ndarray]:
    """Puts another row in the place of one that stands everywhere, at each position in turn.

    Where rows don't interact, the changes are the weights of positions, up to a factor.

    Args:
      probe: the loss.
      mask: [*lead], or None for all positions.
      ahead: how many positions ahead of a row its label stands.

    Returns:
      the two rows, the value at first, and its change at each position, [*lead].
    """
    rows = random_rows(probe.classes, teachers=2, students=1, seed=11)
    base = tile(rows, probe.lead)
    whole, other = (Batch(*(part[i : i + 1] for part in base)) for i in (0, 1))
    if mask is not None:
        whole = whole._replace(mask=np.float32(mask[None]))
    inputs = [whole]
    for place in np.ndindex(probe.lead):
        label = (*place[:-1], (place[-1] + ahead) % probe.lead[-1])
        changed = whole.with_row("student", place, other).with_row("teacher", place, other)
        inputs.append(changed.with_row("labels", label, other))
    values = probe.values(join(inputs)).reshape(len(inputs), -1).sum(-1)
    return rows, float(values[0]), (values[1:] - values[0]).reshape(probe.lead)


def _weigh_positions(subject: Subject) -> Subject:
    """Adds findings on the weight of each position, and how many a sequence have none."""
    moved = changes(subject.probe)[-1]
    if not np.all(np.isfinite(moved)) or np.max(np.abs(moved)) < 1e-6:
        return subject
    moved = moved / moved.flat[np.argmax(np.abs(moved))]
    dropped = int((np.abs(moved) <= _FAR).sum(-1).max())
    changed = "one row changed at each position in turn"
    if moved.ndim > 1 and np.ptp(moved, axis=0).max() > 2e-3:
        shares = ", ".join(f"{share:.3g}" for share in moved.sum(1) / moved.sum(1).max())
        evidence = changed, "equal weights of sequences", shares
        subject = subject.adding(finding("batch_order", evidence))
    if dropped:
        evidence = changed, "a change at each", f"none at {dropped}"
        subject = subject.adding(finding("positions_dropped", evidence, count=dropped))
    along = np.atleast_2d(moved)[0]
    weights = along[np.abs(along) > _FAR]
    if len(weights) and np.ptp(weights) > 2e-3:
        text = ", ".join(f"{share:.3g}" for share in along)
        evidence = changed, "equal weights", text
        subject = subject.adding(finding("position_weights", evidence, weights=text))
    return replace(subject, dropped=dropped)
