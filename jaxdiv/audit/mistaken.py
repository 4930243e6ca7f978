"""Losses of the menu under a mistake: arguments of the wrong kind, a side read wrongly, a changed formula."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxdiv.audit import menu
from jaxdiv.audit.fits import Observed, refine, singles, sums
from jaxdiv.audit.forms import OTHERS, log_softmax
from jaxdiv.audit.identify import Fit, doubts, fits, identify_one, identify_single, plainest, rounding
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


def explain(observe: Callable[[Rows], Observed], rows: Rows, top: Callable[[], tuple[int, ...]]) -> Fit | None:
    """The plainest mistake that explains the values: arguments of the wrong kind, or a side read wrongly.

    Args:
      observe: from rows to their values.
      rows: ordinary ones.
      top: gives the sizes of a top-k truncation that are worth trying.
    """
    observed = observe(rows)
    established = [fit for fit in _by_other_form(observed, rows, ()) if fit.others[0][0].established]
    good = [fit for fit in established if fits(fit, observed)]
    if good:
        return plainest(good, observed, rows)
    fed = explain_feeding(observe, rows, identify_single)
    if not np.all(np.isfinite(observed.values)):
        return fed or explain_feeding(observe, rows, identify_one)
    if fed is not None and not any(doubts(fed, observe(given(rows, fed.fed)), rows)[:2]):
        return fed
    read = explain_reading(observed, rows, top())
    if read is None or fed is None:
        return read or fed or explain_feeding(observe, rows, identify_one)
    return min((read, observed), (fed, observe(given(rows, fed.fed))), key=lambda pair: doubts(*pair, rows))[0]


def given(rows: Rows, fed: tuple[str, str]) -> Rows:
    """Rows with what the function seems to take for logits."""
    return rows._replace(student=FEEDS[fed[0]](rows.student), teacher=FEEDS[fed[1]](rows.teacher))


def explain_feeding(observe: Callable[[Rows], Observed], rows: Rows, identified: Callable) -> Fit | None:
    """A loss that is right, as `identified` tells, once probabilities or log-probabilities are handed to it."""
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
    """A loss, or a sum of two, in which a side is read wrongly or the sides have different temperatures."""
    good = []
    for stage in (
        _by_temperatures,
        _by_other_form,
        _by_mixture,
        by_plain_readings,
        by_shaped_readings,
        by_sums_of_readings,
    ):
        good += [fit for fit in stage(observed, rows, top) if fits(fit, observed)]
        if good and not any(doubts(plainest(good, observed, rows), observed, rows)[:3]):
            break
    return plainest(good, observed, rows) if good else None


def _by_temperatures(observed, rows, top):
    """Different temperatures on the two sides."""
    candidates = [c for c in formed(menu.candidates(rows.student.shape[-1], dense=False)) if not c.cold]
    found = []
    for warm_t in (1.0, 2.0, 4.0, 0.5, 3.0, 8.0):
        for warm_s in (1.0, 2.0, 4.0, 0.5, 3.0, 8.0):
            if warm_t != warm_s:
                columns = columns_of(candidates, rows, (CLEAN, CLEAN), (warm_t, warm_s))
                found += [made(best, candidates, (warm_t, warm_s)) for best in singles(columns, observed, 3)]
    found.sort(key=lambda fit: fit.residual)
    distinct = {}
    for fit in found:
        distinct.setdefault(fit.parts[0][0].name, fit)
    yield from found[:20]
    for fit in list(distinct.values())[:8]:
        yield readjusted(fit, observed, rows, apart=True)


def _by_other_form(observed, rows, top):
    """A formula that is not on the menu, at a common temperature."""
    for temperature in menu.TEMPERATURES:
        roles = menu.heated_roles(rows, temperature)
        for other in OTHERS:
            for value in other.grid or (None,):
                with np.errstate(all="ignore"):
                    column = other.form(roles, value) if other.grid else other.form(roles)
                if not np.all(np.isfinite(column)):
                    continue
                for best in singles(column[None], observed, 1):
                    yield Fit((), (temperature,) * 2, best.residual, others=((other, best.weights[0], value),))


def _by_mixture(observed, rows, top):
    """Two of KL(p‖M), KL(q‖M), KL(M‖p), KL(M‖q), KL(p‖q), KL(q‖p) with one M."""
    found = []
    for temperature in (1.0, 2.0, 4.0, 3.0):
        for beta in FROM_MIXTURE[0].grid:
            candidates, columns = _mixture_columns(rows, temperature, beta)
            for best in sums(columns, observed, 2, 3):
                if max(best.index) >= len(candidates):
                    found.append((best, temperature, beta))
    found.sort(key=lambda each: each[0].residual)
    for best, temperature, beta in found[:6]:

        def model(point, index=best.index):
            return _mixture_columns(rows, *point)[1][list(index)]

        refined = refine(model, (temperature, beta), ((0.0, math.inf), (0.0, 1.0)), observed)
        point, weights, residual = rounding(model, refined.parameters, observed, refined.residual, refined.weights)
        yield _mixture_fit(best.index, weights, residual, rows, *point)


FROM_MIXTURE = tuple(other for other in OTHERS if other.grid)


def _mixture_columns(rows, temperature, beta):
    candidates = (
        menu.Candidate("skew_kl", (("alpha", beta),)),
        menu.Candidate("skew_reverse_kl", (("alpha", 1 - beta),)),
        menu.Candidate("forward_kl"),
        menu.Candidate("reverse_kl"),
    )
    roles = menu.heated_roles(rows, temperature)
    with np.errstate(all="ignore"):
        columns = [candidate.column(roles, temperature) for candidate in candidates]
        columns += [other.form(roles, beta) for other in FROM_MIXTURE]
    return candidates, np.stack(columns)


def _mixture_fit(index, weights, residual, rows, temperature, beta):
    candidates, _ = _mixture_columns(rows, temperature, beta)
    pairs = list(zip(index, weights, strict=True))
    n = len(candidates)
    return Fit(
        tuple((candidates[i], w) for i, w in pairs if i < n),
        (temperature,) * 2,
        residual,
        others=tuple((FROM_MIXTURE[i - n], w, beta) for i, w in pairs if i >= n),
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
        candidates, columns = menu.table(rows.student.shape[-1], temperature, teachers, len(rows.labels) // teachers)
        found += [
            Fit(((candidates[b.index[0]], b.weights[0]),), (temperature,) * 2, b.residual)
            for b in singles(columns, observed)
        ]
    return [fit for fit in found if (fits(fit, observed) if limit is None else fit.residual < limit)]


def explain_loosely(observed: Observed, rows: Rows) -> Fit | None:
    """A single loss to two digits, for values that go in steps as after a cast to half precision."""
    close = sorted(identify_only(observed, rows, limit=2e-2), key=lambda fit: fit.residual)
    plain = [fit for fit in close if fit.residual < 3 * close[0].residual]
    return replace(min(plain, key=lambda fit: _roughness(fit)), loose=True) if plain else None


def _roughness(fit):
    (candidate, weight), *_ = fit.parts
    near = abs(math.log(abs(weight) / fit.temperature**candidate.power)) > 0.02
    return near, candidate.complexity, fit.temperature != 1, fit.residual
