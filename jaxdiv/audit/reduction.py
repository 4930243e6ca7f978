"""How rows become one number: from the output's shape, and from how it grows with the batch."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxdiv.audit.inputs import Rows, tiled
from jaxdiv.audit.probe import CallError, Probe
from jaxdiv.audit.result import Finding, finding

_FACTORS = (3, 2)


@dataclass(frozen=True)
class Reduction:
    """What the output is.

    Attributes:
      name: `none`, `sum`, `token mean`, `sequence mean` or in words; None if not known.
      unit: the output's mean over its axes is this times a row's loss, whatever the number of
        classes.
      by_size: the factor that the number of classes brings, 1/V for a mean over them.
      by_class: which axis of the output, if any, runs over classes.
    """

    name: str | None
    unit: float
    by_class: int | None
    shape: tuple[int, ...]
    findings: tuple[Finding, ...] = ()
    by_size: float = 1.0


def row_values(probe: Probe, rows: Rows, reduced: "Reduction") -> np.ndarray:
    """Each row's loss, [K], from inputs in which it stands everywhere."""
    return _repeated(probe, rows, reduced.by_class, probe.lead) / reduced.unit


def _repeated(probe, rows, by_class, lead):
    return collapsed(probe.values(tiled(rows, lead)), by_class)


def collapsed(values: np.ndarray, by_class: int | None) -> np.ndarray:
    """Outputs [K, *out] summed over classes, the mean of what is left, [K]."""
    if by_class is not None:
        values = values.sum(by_class + 1)
    return values.reshape(len(values), -1).mean(-1) if values.ndim > 1 else values


def class_axis(probe: Probe, shape: tuple[int, ...]) -> int | None:
    return next((i for i, size in reversed(list(enumerate(shape))) if size == probe.classes), None)


def examine(probe: Probe, rows: Rows, seen) -> Reduction:
    """The reduction, from one row repeated to batches of different shapes; `seen`: the
    structure."""
    one = _finite_row(probe, rows.take(slice(0, 1)))
    shape = probe.values(tiled(one, probe.lead)).shape[1:]
    by_class = class_axis(probe, shape)
    rest = tuple(size for i, size in enumerate(shape) if i != by_class and size != 1)
    found = []
    if by_class is not None:
        found.append(
            finding("elementwise", ("a batch", "one value a row", f"an output of shape {shape}"))
        )
    if not probe.lead:
        return Reduction("none", 1.0, by_class, shape, tuple(found))
    grown = _growth(probe, one, by_class, seen.dropped) if seen.axis is None else None
    if grown is None or grown.powers is None:
        if grown is not None and not seen.findings:
            told = (
                "one row repeated to a larger batch",
                "growth as a sum's or a mean's",
                "another",
            )
            found.append(finding("reduction_unusual", told, batch="?", length="?"))
        return Reduction(_by_shape(rest, probe.lead), 1.0, by_class, shape, tuple(found))
    name, code = _named(rest, grown.powers, probe.lead)
    if grown.counted:
        told = (
            "one row repeated to a larger batch",
            "a mean over the positions that count",
            f"{grown.unit:.4g} of it",
        )
        found.append(finding("dropped_count", told, count=seen.dropped))
    elif code and not any(told.code == "batch_order" for told in seen.findings):
        told = (
            "one row repeated to larger batches",
            "growth as a sum's or a mean's",
            _in_words(grown.powers),
        )
        found.append(finding(code, told, **({} if code == "batchmean" else _powers(grown.powers))))
    return Reduction(name, grown.unit, by_class, shape, tuple(found))


def _finite_row(probe, one):
    """A row of which the loss is finite: of probabilities, where logits will not do."""
    if np.all(np.isfinite(probe.values(tiled(one, probe.lead)))):
        return one
    student, teacher = (
        np.exp(side) / np.exp(side).sum(-1, keepdims=True) for side in (one.student, one.teacher)
    )
    return one._replace(student=student, teacher=teacher)


class _Growth(NamedTuple):
    """Powers with which the value grows along each axis of `lead` (None: no small whole numbers),
    the value of a loss of 1 everywhere, and whether positions without loss are counted in the
    mean."""

    powers: tuple[int, ...] | None
    unit: float = 1.0
    counted: bool = False


def _growth(probe, one, by_class, dropped):
    """How the value grows with the batch; None if it can't be told.

    The first axis grows by 3 and the last by 2 at once: products of small powers of the two are all
      different.
    """
    grown = tuple(
        size * factor for size, factor in zip(probe.lead, _FACTORS[-len(probe.lead) :], strict=True)
    )
    try:
        start, end = (
            float(_repeated(probe, one, by_class, lead)[0]) for lead in (probe.lead, grown)
        )
    except CallError:
        return None
    if start == 0 or not math.isfinite(end / start):
        return None
    ways = _hypotheses(len(grown), dropped)
    way = next(
        (
            way
            for way in ways
            if math.isclose(way.growth(probe.lead, grown), end / start, rel_tol=2e-3)
        ),
        None,
    )
    return _Growth(None) if way is None else _Growth(way.powers, way.unit(probe.lead), way.counted)


class _Way(NamedTuple):
    """A hypothesis on the growth: by the sizes to `powers`, `dropped` positions aside, or counted
    in a mean."""

    powers: tuple[int, ...]
    dropped: int
    counted: bool = False

    def unit(self, lead):
        kept = (*lead[:-1], lead[-1] - self.dropped)
        return (
            kept[-1] / lead[-1] if self.counted else float(math.prod(map(pow, kept, self.powers)))
        )

    def growth(self, lead, grown):
        return self.unit(grown) / self.unit(lead)


def _hypotheses(axes, dropped):
    for powers in itertools.product((0, 1, -1, 2, -2), repeat=axes):
        yield _Way(powers, dropped)
    if dropped:
        yield _Way((0,) * axes, dropped, counted=True)


def _by_shape(rest, lead):
    return "none" if len(rest) == len(lead) else None


def _named(rest, grown, lead):
    """Name, and the code of a finding."""
    if len(rest) == len(lead):
        return ("none", None) if not any(grown) else ("none, divided", "reduction_unusual")
    if len(lead) == 1:
        names = {(1,): ("sum", None), (0,): ("token mean", None)}
        return names.get(grown, ("unusual", "reduction_unusual"))
    if len(rest) == 1:
        names = {
            (0, 0): "mean over positions, one value a sequence",
            (0, 1): "sum over positions, one value a sequence",
        }
        if rest[0] != lead[0]:
            names = {
                (0, 0): "mean over sequences, one value a position",
                (1, 0): "sum over sequences, one value a position",
            }
        return (names[grown], None) if grown in names else ("unusual", "reduction_unusual")
    names = {
        (1, 1): ("sum", None),
        (0, 0): ("token mean", None),
        (0, 1): ("batchmean", "batchmean"),
    }
    return names.get(grown, ("unusual", "reduction_unusual"))


def _powers(grown):
    return {"batch": grown[0] if len(grown) > 1 else 0, "length": grown[-1]}


def _in_words(grown):
    return " · ".join(
        f"{axis}^{power}"
        for axis, power in zip("BL" if len(grown) > 1 else "N", grown, strict=True)
    )
