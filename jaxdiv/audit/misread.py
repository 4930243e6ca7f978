"""Sides that are read wrongly: pairs of readings, searched over losses and temperatures."""

import collections
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxdiv.audit import menu, readings, shapes
from jaxdiv.audit.fits import Observed, refine, singles, sums
from jaxdiv.audit.identify import Fit, fits, plainest, rounding
from jaxdiv.audit.inputs import Rows
from jaxdiv.audit.readings import CLEAN, roles_of

TEMPERATURES = (1.0, 2.0, 4.0)  # refined to others
KEPT = (1, 2, 3, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100)


def columns_of(candidates, rows, pair, temperatures):
    """[n, K] of candidates under one pair of readings at (teacher, student) temperatures."""
    return _hot_columns(candidates, rows, pair, *(np.array([t]) for t in temperatures))[0]


def _hot_columns(candidates, rows, pair, warm_t, warm_s):
    """[W, n, K] of candidates under one pair of readings, at W temperatures of teacher and
    student."""
    student, teacher = rows.student.astype(np.float64), rows.teacher.astype(np.float64)
    shape = (len(warm_t), len(rows.labels))
    warm = roles_of(
        student, teacher, rows.labels, pair, (warm_t[:, None, None], warm_s[:, None, None])
    )
    warm = warm.spread(shape)
    cold = None
    if any(candidate.cold for candidate in candidates):
        cold = roles_of(student, teacher, rows.labels, pair, (1.0, 1.0))
    columns = []
    with np.errstate(all="ignore"):
        for candidate in candidates:
            column = candidate.column(cold if candidate.cold else warm, warm_s[:, None])
            columns.append(np.broadcast_to(column, shape))
    return np.stack(columns, 1)


def formed(candidates):
    return tuple(candidate for candidate in candidates if candidate.name in menu.FORMS)


def made(best, candidates, temperatures, pair=(CLEAN, CLEAN)):
    parts = tuple(
        (candidates[i], weight) for i, weight in zip(best.index, best.weights, strict=True)
    )
    return Fit(parts, temperatures, best.residual, readings=pair)


def readjusted(fit, observed, rows, apart=False):
    """Temperatures, the readings' size and the parameters of the parts adjusted, then rounded."""
    bases = [candidate for candidate, _ in fit.parts]
    sized = [reading.size for reading in fit.readings if reading.size is not None][:1]
    start = [*(fit.temperatures if apart else fit.temperatures[:1]), *sized]
    bounds = [(0.0, math.inf)] * (len(start) - len(sized)) + [(0.0, 1.0)] * len(sized)
    for base in bases:
        for key, value in base.parameters:
            parameter = base.entry.parameters[key]
            if not getattr(parameter, "whole", False):
                start.append(value)
                bounds.append((parameter.low, parameter.high))

    def placed(point):
        warm = tuple(point[:2]) if apart else (point[0], point[0])
        rest = iter(point[2 if apart else 1 :])
        pair = fit.readings
        if sized:
            size = next(rest)
            pair = tuple(reading.resized(size) for reading in pair)
        values = lambda base: (  # noqa: E731
            value if getattr(base.entry.parameters[key], "whole", False) else next(rest)
            for key, value in base.parameters
        )
        return [base.with_values(values(base)) for base in bases], pair, warm

    def model(point):
        candidates, pair, warm = placed(point)
        return columns_of(candidates, rows, pair, warm)

    found = refine(model, start, bounds, observed)
    point, weights, residual = rounding(
        model, found.parameters, observed, found.residual, found.weights
    )
    candidates, pair, warm = placed(point)
    parts = tuple(zip(candidates, weights, strict=True))
    return replace(fit, parts=parts, readings=pair, temperatures=warm, residual=residual)


def plain_pairs() -> Iterator[tuple]:
    """(teacher, student) readings of a softmax, logarithm or temperature that is missing or
    doubled."""
    for one in readings.base_readings():
        yield (CLEAN, one)
        yield (one, CLEAN)
    for a in readings.common_readings():
        for b in readings.common_readings():
            yield (a, b)


def shaped_pairs(classes: int, top: tuple[int, ...]) -> Iterator[tuple]:
    """(teacher, student) readings with wrong distributions: truncated, padded, clamped, rolled,
    smoothed."""
    kept = tuple(k for k in KEPT if k < classes)
    for one in (*shapes.joint_readings(top, kept), *shapes.one_sided_padding(classes)):
        yield (CLEAN, one)
        yield (one, CLEAN)
    yield from shapes.both_readings(classes, top, kept)
    for one in shapes.joint_readings((), ()):
        yield (one, one)


def by_plain_readings(observed, rows, top):
    candidates = formed(menu.candidates(rows.student.shape[-1], dense=False))
    yield from _of_readings(plain_pairs(), candidates, menu.TEMPERATURES, 1, observed, rows)


def by_shaped_readings(observed, rows, top):
    classes = rows.student.shape[-1]
    candidates = formed(menu.candidates(classes, dense=False))
    yield from _of_readings(shaped_pairs(classes, top), candidates, TEMPERATURES, 1, observed, rows)


def by_sums_of_readings(observed, rows, top):
    classes = rows.student.shape[-1]
    candidates = formed(menu.candidates(classes, dense=False))
    common = readings.common_readings()
    pairs = (
        [(one, one) for one in common]
        + [(CLEAN, one) for one in common]
        + [(one, CLEAN) for one in common]
    )
    pairs += shapes.both_readings(classes, top, ())
    yield from _of_readings(pairs, candidates, (1.0, 2.0, 4.0), 2, observed, rows)


def _of_readings(pairs, candidates, temperatures, size, observed, rows):
    """Fits of `size` candidates under each pair of readings, and the best of them refined."""
    found = []
    warm = np.array(temperatures)
    for pair in pairs:
        columns = _hot_columns(candidates, rows, pair, warm, warm)
        if size == 1:
            for best in singles(columns.reshape(-1, columns.shape[-1]), observed, 12):
                temperature, i = divmod(best.index[0], len(candidates))
                found.append(
                    made(
                        best._replace(index=(i,)),
                        candidates,
                        (temperatures[temperature],) * 2,
                        pair,
                    )
                )
        else:
            for temperature, at in zip(temperatures, columns, strict=True):
                found += [
                    made(best, candidates, (temperature,) * 2, pair)
                    for best in sums(at, observed, size, 2)
                ]
    found.sort(key=lambda fit: fit.residual)
    yield from found
    yield from (readjusted(fit, observed, rows) for fit in _varied(found))


def _varied(found):
    """The best fits of each loss: readings that don't matter for a loss give the same residual, and
    count once."""
    distinct = {
        (tuple(candidate.name for candidate, _ in fit.parts), f"{fit.residual:.7g}"): fit
        for fit in reversed(found)
    }
    of_loss = collections.Counter()
    for (names, _), fit in reversed(distinct.items()):
        of_loss[names] += 1
        if of_loss[names] <= 2 and sum(of_loss.values()) <= 60:
            yield fit


def explain_wide(observed: Observed, rows: Rows, fit: Fit, top: tuple[int, ...]) -> Fit | None:
    """What looks like `fit` with few classes: truncated to the largest, or padded."""
    classes = rows.student.shape[-1]
    kept = tuple(k for k in KEPT if k < classes)
    pairs = shapes.both_readings(classes, top, kept)
    for one in (*shapes.joint_readings(top, kept), *shapes.one_sided_padding(classes)):
        pairs += [(CLEAN, one), (one, CLEAN)]
    names = {candidate.name for candidate, _ in fit.parts}
    candidates = [candidate for candidate, _ in fit.parts if candidate.name in menu.FORMS]
    found = []
    for pair in pairs if candidates else ():
        columns = columns_of(candidates, rows, pair, fit.temperatures)
        bests = (
            singles(columns, observed, 1)
            if len(candidates) == 1
            else sums(columns, observed, len(candidates), 1)
        )
        found += [made(best, candidates, fit.temperatures, pair) for best in bests]
    truncated = [
        c
        for c in menu.candidates(classes)
        if "top_k" in c.name and names & {"cross_entropy", c.name, "forward_kl"}
    ]
    if truncated:
        columns = columns_of(truncated, rows, (CLEAN, CLEAN), fit.temperatures)
        found += [made(best, truncated, fit.temperatures) for best in singles(columns, observed, 3)]
    good = [fit for fit in found if fits(fit, observed)]
    return plainest(good, observed, rows) if good else None
