"""Losses of the menu under a mistake: arguments of the wrong kind, a side read wrongly, a changed
formula."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxdiv.audit import menu, mixtures
from jaxdiv.audit.fits import Observed, singles
from jaxdiv.audit.forms import OTHERS, log_softmax
from jaxdiv.audit.identify import Fit, doubts, fits, identify_one, identify_single, offset, plainest
from jaxdiv.audit.inputs import Rows
from jaxdiv.audit.misread import (
    by_plain_readings,
    by_shaped_readings,
    by_sums_of_readings,
    columns_of,
    formed,
    made,
    readjusted,
)
from jaxdiv.audit.readings import CLEAN

FEEDS = {
    "logits": lambda x: x,
    "log-probabilities": lambda x: log_softmax(x).astype(np.float32),
    "probabilities": lambda x: np.exp(log_softmax(x)).astype(np.float32),
}


def explain(
    observe: Callable[[Rows], Observed], rows: Rows, top: Callable[[], tuple[int, ...]]
) -> Fit | None:
    """The plainest mistake that explains the values: arguments of the wrong kind, or a side read
    wrongly.

    Args:
      observe: from rows to their values.
      rows: ordinary ones.
      top: gives the sizes of a top-k truncation that are worth trying.
    """
    observed = observe(rows)
    if sides_apart(observe, rows):
        return _of_other_form(observed, rows, OTHERS)
    other = _of_other_form(observed, rows, [other for other in OTHERS if other.established])
    if other is not None and not any(doubts(other, observed, rows)[:2]):
        return other
    read = _explain_sides(observe, observed, rows, top)
    return read if other is None or (read is not None and _as_written(read)) else other


def _as_written(fit):
    """Whether it has no factor and no temperature: half the absolute difference is TV of what
    should be softmaxes."""
    return fit.temperatures == (1.0, 1.0) and math.isclose(sum(fit.weights), 1, rel_tol=1e-3)


def _of_other_form(observed, rows, others):
    good = [fit for fit in _by_other_form(observed, rows, (), others) if fits(fit, observed)]
    return plainest(good, observed, rows) if good else None


def sides_apart(observe: Callable[[Rows], Observed], rows: Rows) -> bool:
    """Whether student and teacher, labels with it, never meet: the value is a function of each,
    added."""
    few = rows.take(slice(None, None, 5))
    value = {}
    for by_student in (0, 1):
        for by_teacher in (0, 1):
            moved = few._replace(student=np.roll(few.student, by_student, 0))
            moved = moved._replace(
                teacher=np.roll(few.teacher, by_teacher, 0), labels=np.roll(few.labels, by_teacher)
            )
            value[by_student, by_teacher] = observe(moved).values
    meeting = value[0, 0] - value[0, 1] - value[1, 0] + value[1, 1]
    return bool(np.max(np.abs(meeting)) < 1e-5 * np.max(np.abs(value[0, 0])))


def _explain_sides(observe, observed, rows, top):
    """Arguments of the wrong kind, or a side read wrongly."""
    fed = _fed(observe, rows, identify_single)
    if fed is not None and not any(doubts(fed, observe(given(rows, fed.fed)), rows)[:2]):
        return fed
    read = explain_reading(observed, rows, top())
    if read is None or fed is None:
        return read or fed or _fed(observe, rows, identify_one)
    return min(
        (read, observed), (fed, observe(given(rows, fed.fed))), key=lambda pair: doubts(*pair, rows)
    )[0]


def explain_fed(observe: Callable[[Rows], Observed], rows: Rows) -> Fit | None:
    """Arguments of the wrong kind: a loss that is right once probabilities or log-probabilities are
    handed to it."""
    return _fed(observe, rows, identify_single) or _fed(observe, rows, identify_one)


def given(rows: Rows, fed: tuple[str, str]) -> Rows:
    """Rows with what the function seems to take for logits."""
    return rows._replace(student=FEEDS[fed[0]](rows.student), teacher=FEEDS[fed[1]](rows.teacher))


def _fed(observe, rows, identified):
    pairs = [(s, t) for s in FEEDS for t in FEEDS if (s, t) != ("logits", "logits")]
    for fed in sorted(pairs, key=lambda pair: (pair.count("logits") == 0, pair)):
        observed = observe(given(rows, fed))
        if not np.all(np.isfinite(observed.values)) or np.allclose(observed.centred, 0, atol=1e-6):
            continue
        fit = identified(observed, rows)
        if fit is not None:
            return replace(fit, fed=fed)
    return None


def explain_reading(observed: Observed, rows: Rows, top: tuple[int, ...]) -> Fit | None:
    """A loss, or a sum of two, in which a side is read wrongly or the sides have different
    temperatures."""
    good = []
    for stage in (
        _by_temperatures,
        _by_other_form,
        mixtures.explain,
        by_plain_readings,
        by_shaped_readings,
        by_sums_of_readings,
    ):
        good += [fit for fit in stage(observed, rows, top) if fits(fit, observed)]
        if good and not any(doubts(plainest(good, observed, rows), observed, rows)[:3]):
            break
    return plainest(good, observed, rows) if good else None


def explain_student(observed: Observed, rows: Rows) -> Fit | None:
    """As `explain_reading`, for a softmax or logarithm alone: of values that lack the teacher's
    part."""
    good = [fit for fit in by_plain_readings(observed, rows, ()) if fits(fit, observed)]
    return plainest(good, observed, rows) if good else None


def _by_temperatures(observed, rows, top):
    """Different temperatures on the two sides."""
    candidates = [
        c for c in formed(menu.candidates(rows.student.shape[-1], dense=False)) if not c.cold
    ]
    found = []
    for warm_t in (1.0, 2.0, 4.0, 0.5, 3.0, 8.0):
        for warm_s in (1.0, 2.0, 4.0, 0.5, 3.0, 8.0):
            if warm_t != warm_s:
                columns = columns_of(candidates, rows, (CLEAN, CLEAN), (warm_t, warm_s))
                found += [
                    made(best, candidates, (warm_t, warm_s))
                    for best in singles(columns, observed, 3)
                ]
    found.sort(key=lambda fit: fit.residual)
    distinct = {}
    for fit in found:
        distinct.setdefault(fit.parts[0][0].name, fit)
    yield from found[:20]
    for fit in list(distinct.values())[:8]:
        yield readjusted(fit, observed, rows, apart=True)


def _by_other_form(observed, rows, top, others=OTHERS):
    """A formula that is not on the menu, at a common temperature."""
    for temperature in menu.TEMPERATURES:
        roles = menu.heated_roles(rows, temperature)
        for other in others if temperature == 1 else [other for other in others if other.heated]:
            for value in other.grid or (None,):
                with np.errstate(all="ignore"):
                    column = other.form(roles, value) if other.grid else other.form(roles)
                if not np.all(np.isfinite(column)):
                    continue
                for best in singles(column[None], observed, 1):
                    yield Fit(
                        (),
                        (temperature,) * 2,
                        best.residual,
                        others=((other, best.weights[0], value),),
                    )


OUTER = {
    "the square root": lambda y: y**2,
    "the square": lambda y: np.sqrt(y),
    "the exponential": np.log,
    "the logarithm": np.exp,
    "-log(1 - x)": lambda y: 1 - np.exp(-y),
    "1 - exp(-x)": lambda y: -np.log1p(-y),
    "exp(-x)": lambda y: -np.log(y),
}


def explain_outer(observed: Observed, rows: Rows) -> Fit | None:
    """A function of a loss."""
    for outer, inverse in OUTER.items():
        with np.errstate(all="ignore"):
            inner = inverse(observed.values)
        if np.all(np.isfinite(inner)):
            good = identify_only(Observed(inner, observed.groups), rows)
            if good:
                return replace(plainest(good, Observed(inner, observed.groups), rows), outer=outer)
    return None


def identify_only(observed: Observed, rows: Rows, limit: float | None = None) -> list[Fit]:
    """Single clean fits on the grid, of residuals that float32 or `limit` allows."""
    found = []
    for temperature in menu.TEMPERATURES:
        teachers = len(np.unique(rows.groups))
        candidates, columns = menu.table(
            rows.student.shape[-1], temperature, teachers, len(rows.labels) // teachers
        )
        found += [
            Fit(((candidates[b.index[0]], b.weights[0]),), (temperature,) * 2, b.residual)
            for b in singles(columns, observed)
        ]
    return [
        fit for fit in found if (fits(fit, observed) if limit is None else fit.residual < limit)
    ]


def explain_loosely(observed: Observed, rows: Rows) -> Fit | None:
    """A single loss to two digits, for values that go in steps as after a cast to half
    precision."""
    close = sorted(identify_only(observed, rows, limit=2e-2), key=lambda fit: fit.residual)
    plain = [fit for fit in close if fit.residual < 3 * close[0].residual]
    return (
        replace(min(plain, key=lambda fit: _roughness(fit, observed, rows)), loose=True)
        if plain
        else None
    )


def _roughness(fit, observed, rows):
    (candidate, weight), *_ = fit.parts
    unexplained = abs(math.log(abs(weight) / fit.temperature**candidate.power)) > 0.02
    added = np.max(np.abs(offset(fit, observed, rows))) > 0.03 * np.max(np.abs(observed.values))
    return unexplained, added, candidate.complexity, fit.temperature != 1, fit.residual
