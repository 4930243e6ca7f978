"""The rows of a batch that a loss brings together: shifts, softmaxes over other axes, weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxdiv.audit.calls import CallError, Probe
from jaxdiv.audit.inputs import ProbeRows, batch, join, random_batch, random_rows, tile
from jaxdiv.audit.result import Finding, finding

AXES = {2: ("sequences", "positions"), 1: ("rows",), 0: ()}
FAR = 1e-3  # a change that is no rounding, relative to the largest


@dataclass(frozen=True)
class Structure:
    """The relation of a loss to the positions of a batch.

    Attributes:
      findings: on rows, axes and order.
      axis: the axis of `lead` over which a softmax runs, if it isn't the classes.
      dropped: positions a sequence that give no loss.
      ahead: how many positions ahead of the student its labels stand.
      interacting: whether all rows of a batch influence each other.
      coarse: whether the value goes in steps, so that nothing finer can be seen.
    """

    findings: tuple[Finding, ...] = ()
    axis: int | None = None
    dropped: int = 0
    ahead: int = 0
    interacting: bool = False
    coarse: bool = False


def flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def structure(probe: Probe) -> Structure:
    """Returns how rows, positions and sequences enter the loss."""
    one = random_batch(probe.lead, probe.classes).one()
    calls = [np.ravel(probe.value(one, eager=True)) for _ in range(3)]
    findings = [
        finding("not_deterministic", ("one batch, called thrice", calls[0][0], again[0]))
        for again in calls[1:]
        if not np.array_equal(calls[0], again, equal_nan=True)
    ][:1]
    coarse = list(_steps(probe))
    if coarse:
        return Structure((*findings, *coarse), coarse=True)
    pairs = _interactions(probe) if probe.lead else None
    if pairs is None:
        return Structure(tuple(findings))
    if not any(np.any(matrix & ~np.eye(len(matrix), dtype=bool)) for matrix in pairs.values()):
        weights, dropped = _position_weights(probe)
        return Structure((*findings, *weights), dropped=dropped)
    shifts = {side: _shift(pairs[side], probe.lead) for side in pairs if side != "student"}
    shifts = {side: (by, dropped) for side, (by, dropped) in shifts.items() if by}
    if not shifts or np.any(pairs["student"]):
        interplay, axis = _axis_finding(probe, pairs)
        return Structure((*findings, interplay), axis=axis, interacting=axis is None)
    for side, (by, dropped) in shifts.items():
        got = f"i meets i{by:+d} ({'cut' if dropped else 'rolled'})"
        evidence = ("one row changed at a time", "position i meets i", got)
        # A causal loss may shift labels itself: it meets the next one and drops the last position.
        if side == "labels" and (by, dropped) == (1, 1):
            findings.append(finding("shifts_labels", evidence))
        else:
            code = "labels_shifted" if side == "labels" else "positions_shifted"
            findings.append(finding(code, evidence, shift=by))
    dropped = max(dropped for _, dropped in shifts.values())
    ahead = shifts.get("labels", (0, 0))[0]
    return Structure(tuple(findings), dropped=dropped, ahead=ahead)


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
            values.append(flat(probe.values(tile(rows._replace(**{side: logits}), probe.lead))))
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
    whole, other = (random_batch(probe.lead, probe.classes, seed).flatten() for seed in (1, 2))
    labels = (whole.labels + 1 + other.labels % (probe.classes - 1)) % probe.classes
    other, n = other._replace(labels=labels), whole.labels.shape[1]
    sides = [side for side in ("student", "teacher", "labels") if probe.takes(side)]
    singles = [(side, i) for side in sides for i in range(n)]
    doubles = [(i, side, j) for i in range(n) for side, j in singles if (side, j) != ("student", i)]
    moved = {(side, i): whole.with_row(side, i, other) for side, i in singles}
    both = [moved["student", i].with_row(side, j, other) for i, side, j in doubles]
    inputs = join([whole, *moved.values(), *both])
    values = flat(probe.values(inputs.reshape(probe.lead)))
    if not np.all(np.isfinite(values)):
        return None
    change = dict(zip(singles, values[1:] - values[0], strict=False))
    matrices = {side: np.zeros((n, n)) for side in sides}
    for (i, side, j), value in zip(doubles, values[1 + len(singles) :], strict=True):
        together = value - values[0] - change["student", i] - change[side, j]
        matrices[side][i, j] = np.max(np.abs(together))
    largest = max(np.max(matrix) for matrix in matrices.values())
    least = max(FAR * largest, 1e-5 * np.max(np.abs(values)))
    return {side: matrix > least for side, matrix in matrices.items()}


def _shift(matrix: np.ndarray, lead: tuple[int, ...]) -> tuple[int, int]:
    """Returns (k, positions a sequence that meet none) if row i meets i + k alone, else (0, 0)."""
    if np.any(np.diag(matrix)) or not np.any(matrix):
        return 0, 0
    length = lead[-1]
    first, second = (np.stack(np.unravel_index(index, lead), -1) for index in np.nonzero(matrix))
    away = second - first
    steps = {int(step) for step in away[:, -1]}
    if np.any(away[:, :-1]) or len({step % length for step in steps}) > 1:
        return 0, 0
    return min(steps, key=abs), length - len(away) // int(np.prod(lead[:-1], dtype=int))


def _axis_finding(probe: Probe, pairs: dict[str, np.ndarray]) -> tuple[Finding, int | None]:
    """Returns the finding of a softmax over another axis, and the axis; else of rows that meet."""
    names = AXES[len(probe.lead)]
    for side, axes in _invariant_axes(probe).items():
        for axis in range(len(probe.lead)):
            if axis in axes and -1 not in axes:
                changed = f"a constant added along the {names[axis]} of the {side}"
                evidence = changed, "another value", "the same value"
                return finding("softmax_axis", evidence, axis=names[axis]), axis
        if axes == {None}:
            evidence = f"a constant added to one row of the {side}", "the same", "another value"
            return finding("softmax_axis", evidence, axis="whole batch"), None
    meeting = [np.argwhere(matrix & ~np.eye(len(matrix), dtype=bool)) for matrix in pairs.values()]
    meeting = np.concatenate(meeting)
    first, second = (np.stack(np.unravel_index(meeting[:, k], probe.lead), -1) for k in (0, 1))
    moved = np.any(first != second, axis=0)
    evidence = "two rows changed, alone and together", "the changes add up", "they don't"
    if len(probe.lead) > 1 and moved.sum() == 1:
        axis = f"different {names[int(np.argmax(moved))]}"
        return finding("rows_interact", evidence, axis=axis), None
    return finding("batch_dependence", evidence), None


def _invariant_axes(probe: Probe) -> dict[str, set]:
    """Returns for each side the axes along which adding a constant changes nothing.

    -1 stands for the classes, other numbers for axes of `lead`, None for all of them at once.
    """
    base, draw = random_batch(probe.lead, probe.classes, seed=5), np.random.default_rng(3)
    axes = (-1, *range(len(probe.lead)), None)
    inputs = [base]
    for side in ("student", "teacher"):
        for axis in axes:
            shape = list(base.student.shape) if axis is not None else [1] * base.student.ndim
            if axis is not None:
                shape[axis if axis < 0 else axis + 1] = 1
            moved = getattr(base, side) + 2 * draw.normal(size=shape) + 1
            inputs.append(base._replace(**{side: moved.astype(np.float32)}))
    values = flat(probe.values(join(inputs)))
    same = np.max(np.abs(values - values[:1]), -1) < 2e-5 * (np.max(np.abs(values[0])) + 1e-6)
    marks = iter(same[1:])
    return {side: {axis for axis in axes if next(marks)} for side in ("student", "teacher")}


def observe_along(probe: Probe, axis: int, rows: ProbeRows) -> np.ndarray | None:
    """Returns values [K] where a row of classes stands along `axis` of `lead`; None if refused."""
    lead = list(probe.lead)
    lead[axis] = rows.student.shape[-1]

    def spread(part):
        shape = [len(part)] + [1] * (len(lead) + 1)
        shape[axis + 1] = part.shape[-1]
        return np.broadcast_to(part.reshape(shape), (len(part), *lead, probe.classes))

    labels = np.zeros((len(rows.labels), *lead))
    try:
        values = probe.values(batch(spread(rows.student), spread(rows.teacher), labels))
    except CallError:
        return None
    return flat(values).sum(-1)


def _position_weights(probe: Probe) -> tuple[list[Finding], int]:
    """Returns findings on the weight of each position, and how many a sequence have none.

    One row stands everywhere; the change when another takes its place is a position's weight.
    """
    base = tile(random_rows(probe.classes, teachers=2, students=1, seed=11), probe.lead)
    whole, other = (base.one(slice(i, i + 1)).flatten() for i in (0, 1))
    inputs = [whole]
    for i in range(whole.labels.shape[1]):
        changed = whole.with_row("student", i, other).with_row("teacher", i, other)
        inputs.append(changed.with_row("labels", i, other))
    values = flat(probe.values(join(inputs).reshape(probe.lead))).sum(-1)
    moved = (values[1:] - values[0]).reshape(probe.lead)
    if not np.all(np.isfinite(values)) or np.max(np.abs(moved)) < 1e-6:
        return [], 0
    moved = moved / moved.flat[np.argmax(np.abs(moved))]
    present = np.abs(moved) > FAR
    dropped, findings = int((~present).sum(-1).max()), []
    changed = "one row changed at each position in turn"
    if moved.ndim > 1 and np.ptp(moved, axis=0).max() > 2e-3:
        shares = ", ".join(f"{share:.3g}" for share in moved.sum(1) / moved.sum(1).max())
        findings.append(finding("batch_order", (changed, "equal weights of sequences", shares)))
    if dropped:
        evidence = changed, "a change at each", f"none at {dropped}"
        findings.append(finding("positions_dropped", evidence, count=dropped))
    along = moved.reshape(-1, moved.shape[-1])[0]
    weights = along[present.reshape(-1, moved.shape[-1])[0]]
    if len(weights) and np.ptp(weights) > 2e-3:
        text = ", ".join(f"{share:.3g}" for share in along)
        findings.append(finding("position_weights", (changed, "equal weights", text), weights=text))
    return findings, dropped
