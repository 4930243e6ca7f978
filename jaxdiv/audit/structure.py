"""Which rows of a batch a loss brings together: shifts, softmaxes over other axes, dependence on the batch."""

from dataclasses import dataclass

import numpy as np

from jaxdiv.audit.inputs import Batch, batch, joined, random_batch, random_rows, tiled
from jaxdiv.audit.probe import CallError, Probe
from jaxdiv.audit.result import Finding, finding

AXES = {2: ("sequences", "positions"), 1: ("rows",), 0: ()}
COARSE = 0.7  # of trials in which a small move of the largest logit changes nothing
FAR = 1e-3  # a change that is no rounding, relative to the largest


@dataclass(frozen=True)
class Structure:
    """What was seen of positions.

    Attributes:
      findings: of rows, axes and order.
      independent: whether each row's loss is its own.
      axis: of `lead`, over which a softmax runs, if not the classes.
      dropped: positions a sequence that give no loss.
      interacting: whether all rows of a batch influence each other.
      coarse: whether the value goes in steps, so that nothing finer can be seen.
    """

    findings: tuple[Finding, ...] = ()
    independent: bool = True
    axis: int | None = None
    dropped: int = 0
    interacting: bool = False
    coarse: bool = False


def examine(probe: Probe) -> Structure:
    findings = list(_deterministic(probe))
    unmoved = _unmoved(probe)
    if unmoved > COARSE:
        told = ("one logit moved by 1 part in 10,000", "a change of the value", f"none in {unmoved:.0%} of trials")
        found = finding("low_precision", told, digits="a small move of a logit changes nothing")
        return Structure((*findings, found), coarse=True)
    sides = invariances(probe)
    if not probe.lead:
        return Structure(tuple(findings), dropped=0)
    pairs = _pairs(probe)
    if pairs is None:
        return Structure(tuple(findings))
    off_diagonal = any(np.any(matrix & ~np.eye(len(matrix), dtype=bool)) for matrix in pairs.values())
    if not off_diagonal:
        weights, dropped = _weights(probe)
        return Structure((*findings, *weights), dropped=dropped)
    shifted = {name: _shift(matrix, probe.lead) for name, matrix in pairs.items() if name != "student"}
    if any(shift for shift, _ in shifted.values()) and not np.any(pairs["student"]):
        findings += _shift_findings(shifted)
        return Structure(
            tuple(findings), independent=False, dropped=max(drop for shift, drop in shifted.values() if shift)
        )
    found, axis = _axis_finding(probe, sides, pairs)
    return Structure((*findings, found), independent=False, axis=axis, interacting=axis is None)


def flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _deterministic(probe):
    one = Batch(*(part[0] for part in random_batch(probe.lead, probe.classes)))
    first, second, third = (probe.value(one, eager=True) for _ in range(3))
    for again in (second, third):
        if not np.array_equal(first, again, equal_nan=True):
            told = "one batch, called twice", f"{np.ravel(first)[0]:.6g}", f"{np.ravel(again)[0]:.6g}"
            yield finding("not_deterministic", told)
            return


def _unmoved(probe):
    """The share of rows whose largest student logit can move by 1e-4 of itself without any change."""
    rows = random_rows(probe.classes, teachers=40, students=1, seed=81)
    top = rows.student.argmax(-1)
    moved = rows.student.copy()
    moved[np.arange(len(top)), top] *= np.float32(1 + 1e-4)
    base = flat(probe.values(tiled(rows, probe.lead)))
    again = flat(probe.values(tiled(rows._replace(student=moved), probe.lead)))
    other = flat(probe.values(tiled(rows._replace(student=rows.student[::-1]), probe.lead)))
    return 0.0 if np.allclose(other, base, rtol=1e-5, equal_nan=True) else float(np.mean(np.all(again == base, -1)))


def invariances(probe: Probe) -> dict[str, set]:
    """Of each side, the axes along which adding a constant changes nothing: -1 the classes, others of `lead`."""
    base = random_batch(probe.lead, probe.classes, seed=5)
    draw = np.random.default_rng(3)
    axes = (-1, *range(len(probe.lead)), None)
    inputs = [base]
    for side in ("student", "teacher"):
        for axis in axes:
            logits = getattr(base, side)
            shape = list(logits.shape)
            if axis is None:
                shape = [1] * len(shape)
            else:
                shape[axis if axis < 0 else axis + 1] = 1
            moved = (logits + draw.normal(size=shape) * 2 + 1).astype(np.float32)
            inputs.append(base._replace(**{side: moved}))
    values = flat(probe.values(joined(inputs)))
    same = np.max(np.abs(values - values[:1]), -1) < 2e-5 * (np.max(np.abs(values[0])) + 1e-6)
    if not np.all(np.isfinite(values[0])):
        return {"student": set(axes), "teacher": set(axes)}
    marks = iter(same[1:])
    return {side: {axis for axis in axes if next(marks)} for side in ("student", "teacher")}


def _pairs(probe):
    """Which rows of one side interact with which of another, [N, N] each; None if values are not finite.

    Two rows interact if changing both is not the sum of changing each: the second difference of the loss.
    """
    base, other = (random_batch(probe.lead, probe.classes, seed=seed) for seed in (1, 2))
    other = other._replace(labels=(base.labels + 1 + other.labels % (probe.classes - 1)) % probe.classes)
    n = int(np.prod(probe.lead))
    sides = {"student": "student", **({"teacher": "teacher"} if probe.takes_teacher else {})}
    if probe.takes_labels:
        sides["labels"] = "labels"
    whole, changed = _flattened(base, n), _flattened(other, n)

    def swapped(changes):
        parts = {name: getattr(whole, name).copy() for name in Batch._fields}
        for side, i in changes:
            parts[side][0, i] = getattr(changed, side)[0, i]
        return Batch(**parts)

    plans = [()] + [((side, i),) for side in sides for i in range(n)]
    doubles = [(("student", i), (side, j)) for side in sides for i in range(n) for j in range(n)]
    doubles = [pair for pair in doubles if pair[0] != pair[1]]
    inputs = joined([swapped(plan) for plan in (*plans, *doubles)])
    values = flat(probe.values(_shaped(inputs, probe.lead)))
    if not np.all(np.isfinite(values)):
        return None
    single = {plan[0]: values[k] - values[0] for k, plan in enumerate(plans) if plan}
    found = {side: np.zeros((n, n)) for side in sides}
    for pair, value in zip(doubles, values[len(plans) :], strict=True):
        (_, i), (side, j) = pair
        found[side][i, j] = np.max(np.abs(value - values[0] - single[pair[0]] - single[pair[1]]))
    largest = max(np.max(matrix) for matrix in found.values())
    least = max(FAR * largest, 1e-5 * np.max(np.abs(values)))
    return {side: matrix > least for side, matrix in found.items()}


def _flattened(one, n):
    classes = one.student.shape[-1]
    logits = (one.student.reshape(1, n, classes), one.teacher.reshape(1, n, classes))
    return Batch(*logits, one.labels.reshape(1, n), one.mask.reshape(1, n))


def _shaped(inputs, lead):
    return Batch(*(part.reshape(len(part), *lead, *part.shape[2:]) for part in inputs))


def _shift(matrix, lead):
    """(k, dropped) where row i meets row i+k of the last axis of `lead` and no other; k = 0 if not so."""
    if np.any(np.diag(matrix)) or not np.any(matrix):
        return 0, 0
    length = lead[-1]
    first, second = (np.stack(np.unravel_index(index, lead), -1) for index in np.nonzero(matrix))
    away = second - first
    steps = {int(step) for step in away[:, -1]}
    moduli = {step % length for step in steps}
    if np.any(away[:, :-1]) or len(moduli) > 1:
        return 0, 0
    shift = min(steps, key=abs)
    per_sequence = len(away) // int(np.prod(lead[:-1], dtype=int))
    return shift, length - per_sequence


def _shift_findings(shifted):
    for side, (shift, dropped) in shifted.items():
        if shift:
            code = "labels_shifted" if side == "labels" else "positions_shifted"
            how = "cut" if dropped else "rolled"
            yield finding(
                code, ("one row changed at a time", "position i meets i", f"i meets i{shift:+d} ({how})"), shift=shift
            )


def _axis_finding(probe, sides, pairs):
    """A softmax over the wrong axis, if adding constants along it changes nothing; else which rows interact."""
    names = AXES[len(probe.lead)]
    for side, axes in sides.items():
        for axis in range(len(probe.lead)):
            if axis in axes and -1 not in axes:
                told = f"a constant added along the {names[axis]} of the {side}", "another value", "the same value"
                return finding("softmax_axis", told, axis=names[axis]), axis
        if axes == {None}:
            told = f"a constant added to one row of the {side}", "the same value", "another value"
            return finding("softmax_axis", told, axis="whole batch"), None
    away = [np.argwhere(matrix & ~np.eye(len(matrix), dtype=bool)) for matrix in pairs.values()]
    away = np.concatenate(away)
    first, second = (np.stack(np.unravel_index(away[:, k], probe.lead), -1) for k in (0, 1))
    moved = np.any(first != second, axis=0)
    told = "two rows changed, alone and together", "the changes add up", "they don't"
    if len(probe.lead) > 1 and moved.sum() == 1:
        return finding("rows_interact", told, axis=f"different {names[int(np.argmax(moved))]}"), None
    return finding("batch_dependence", told), None


def _weights(probe):
    """Findings on the weight of each position, and how many a sequence have none.

    One row stands everywhere; what changes when another takes its place at one position is that position's weight.
    """
    rows = random_rows(probe.classes, teachers=2, students=1, seed=11)
    base = tiled(rows, probe.lead)
    n = int(np.prod(probe.lead))
    whole = Batch(*(part[:1] for part in base))
    inputs = _flattened(whole, n)
    other = _flattened(Batch(*(part[1:] for part in base)), n)
    changed = []
    for i in range(n):
        parts = {name: getattr(inputs, name).copy() for name in Batch._fields}
        for name in ("student", "teacher", "labels"):
            parts[name][0, i] = getattr(other, name)[0, i]
        changed.append(Batch(**parts))
    values = flat(probe.values(_shaped(joined([inputs, *changed]), probe.lead))).sum(-1)
    moved = (values[1:] - values[0]).reshape(probe.lead)
    largest = np.max(np.abs(moved))
    if not np.all(np.isfinite(values)) or largest < 1e-6:
        return (), 0
    moved = moved / moved.flat[np.argmax(np.abs(moved))]
    present = np.abs(moved) > 1e-3
    dropped = int((~present).sum(-1).max())
    return tuple(_weight_findings(moved, present, dropped)), dropped


def _weight_findings(moved, present, dropped):
    told = "one row changed at each position in turn"
    if moved.ndim > 1 and np.ptp(moved, axis=0).max() > 2e-3:
        by_sequence = ", ".join(f"{share:.3g}" for share in moved.sum(1) / moved.sum(1).max())
        yield finding("batch_order", (told, "equal weights of sequences", by_sequence))
    if dropped:
        yield finding("positions_dropped", (told, "a change at each", f"none at {dropped}"), count=dropped)
    along = moved.reshape(-1, moved.shape[-1])[0]
    kept = along[present.reshape(-1, moved.shape[-1])[0]]
    if len(kept) and np.ptp(kept) > 2e-3:
        told_weights = ", ".join(f"{share:.3g}" for share in along)
        yield finding("position_weights", (told, "equal weights", told_weights), weights=told_weights)


def observe_along(probe: Probe, axis: int, student: np.ndarray, teacher: np.ndarray, labels) -> np.ndarray | None:
    """Values [K] where a row [K, W] of classes stands along `axis` of `lead`, the rest alike; None if refused."""
    lead = list(probe.lead)
    lead[axis] = student.shape[-1]

    def spread(part):
        shape = [len(part)] + [1] * (len(lead) + 1)
        shape[axis + 1] = part.shape[-1]
        return np.broadcast_to(part.reshape(shape), (len(part), *lead, probe.classes))

    inputs = batch(spread(student), spread(teacher), np.zeros((len(student), *lead)))
    try:
        return flat(probe.values(inputs)).sum(-1)
    except CallError:
        return None
