"""Which rows of a batch a loss brings together: shifts, softmaxes over other axes, dependence on
the batch."""

from dataclasses import dataclass

import numpy as np

from jaxdiv.audit import positions, precision
from jaxdiv.audit.inputs import Batch, batch, flattened, joined, random_batch, shaped
from jaxdiv.audit.precision import flat
from jaxdiv.audit.probe import CallError, Probe
from jaxdiv.audit.result import Finding, finding

AXES = {2: ("sequences", "positions"), 1: ("rows",), 0: ()}
FAR = 1e-3  # a change that is no rounding, relative to the largest


@dataclass(frozen=True)
class Structure:
    """What was seen of positions.

    Attributes:
      findings: of rows, axes and order.
      axis: of `lead`, over which a softmax runs, if not the classes.
      dropped: positions a sequence that give no loss.
      ahead: how many positions ahead of the student the labels stand that it meets.
      interacting: whether all rows of a batch influence each other.
      coarse: whether the value goes in steps, so that nothing finer can be seen.
    """

    findings: tuple[Finding, ...] = ()
    axis: int | None = None
    dropped: int = 0
    ahead: int = 0
    interacting: bool = False
    coarse: bool = False


def examine(probe: Probe) -> Structure:
    findings, coarse = precision.deterministic(probe), precision.steps(probe)
    if coarse:
        return Structure((*findings, *coarse), coarse=True)
    pairs = _pairs(probe) if probe.lead else None
    if pairs is None:
        return Structure(tuple(findings))
    if not any(np.any(matrix & ~np.eye(len(matrix), dtype=bool)) for matrix in pairs.values()):
        weights, dropped = positions.weights(probe)
        return Structure((*findings, *weights), dropped=dropped)
    shifts = {
        name: positions.shift(matrix, probe.lead)
        for name, matrix in pairs.items()
        if name != "student"
    }
    shifts = {name: found for name, found in shifts.items() if found.by}
    if shifts and not np.any(pairs["student"]):
        dropped = max(found.dropped for found in shifts.values())
        ahead = shifts["labels"].by if "labels" in shifts else 0
        return Structure(
            (*findings, *positions.shift_findings(shifts)), dropped=dropped, ahead=ahead
        )
    found, axis = _axis_finding(probe, invariances(probe), pairs)
    return Structure((*findings, found), axis=axis, interacting=axis is None)


def invariances(probe: Probe) -> dict[str, set]:
    """Of each side, the axes along which adding a constant changes nothing: -1 the classes, others
    of `lead`."""
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
    """Which rows of one side interact with which of another, [N, N] each; None if values are not
    finite.

    Two rows interact if changing both is not the sum of changing each: the second difference of the
      loss.
    """
    base, other = (random_batch(probe.lead, probe.classes, seed=seed) for seed in (1, 2))
    other = other._replace(
        labels=(base.labels + 1 + other.labels % (probe.classes - 1)) % probe.classes
    )
    n = int(np.prod(probe.lead))
    sides = {"student": "student", **({"teacher": "teacher"} if probe.takes_teacher else {})}
    if probe.takes_labels:
        sides["labels"] = "labels"
    whole, changed = flattened(base, n), flattened(other, n)

    def swapped(changes):
        parts = {name: getattr(whole, name).copy() for name in Batch._fields}
        for side, i in changes:
            parts[side][0, i] = getattr(changed, side)[0, i]
        return Batch(**parts)

    plans = [()] + [((side, i),) for side in sides for i in range(n)]
    doubles = [(("student", i), (side, j)) for side in sides for i in range(n) for j in range(n)]
    doubles = [pair for pair in doubles if pair[0] != pair[1]]
    inputs = joined([swapped(plan) for plan in (*plans, *doubles)])
    values = flat(probe.values(shaped(inputs, probe.lead)))
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


def _axis_finding(probe, sides, pairs):
    """A softmax over the wrong axis, if adding constants along it changes nothing; else which rows
    interact."""
    names = AXES[len(probe.lead)]
    for side, axes in sides.items():
        for axis in range(len(probe.lead)):
            if axis in axes and -1 not in axes:
                told = (
                    f"a constant added along the {names[axis]} of the {side}",
                    "another value",
                    "the same value",
                )
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
        return finding(
            "rows_interact", told, axis=f"different {names[int(np.argmax(moved))]}"
        ), None
    return finding("batch_dependence", told), None


def observe_along(
    probe: Probe, axis: int, student: np.ndarray, teacher: np.ndarray, labels
) -> np.ndarray | None:
    """Values [K] where a row [K, W] of classes stands along `axis` of `lead`, the rest alike; None
    if refused."""
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
