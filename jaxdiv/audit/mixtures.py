"""Parts of Jensen-Shannon divergences: the wrong way round, or with weights that are not their
mixture's."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from jaxdiv.audit import menu
from jaxdiv.audit.fits import Observed, refine, sums
from jaxdiv.audit.forms import OTHERS
from jaxdiv.audit.identify import Fit, rounding
from jaxdiv.audit.inputs import Rows
from jaxdiv.audit.menu import Candidate
from jaxdiv.audit.result import Finding, finding

FROM_MIXTURE = tuple(other for other in OTHERS if other.grid)


def explain(observed: Observed, rows: Rows, top: tuple[int, ...]) -> Iterator[Fit]:
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
        point, weights, residual = rounding(
            model, refined.parameters, observed, refined.residual, refined.weights
        )
        yield _mixture_fit(best.index, weights, residual, rows, *point)


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


def weight_findings(parts: Mapping[Candidate, float]) -> Iterator[Finding]:
    """KL(p‖M) and KL(q‖M) of one M = βp + (1-β)q have the weights β and 1-β in a Jensen-Shannon
    divergence."""
    halves = [_halves(candidate, weight) for candidate, weight in parts.items()]
    if len(halves) < 2 or None in halves:
        return
    beta = halves[0][0]
    by_p, by_q = (sum(half[side] for half in halves) for side in (1, 2))
    same = all(math.isclose(half[0], beta, abs_tol=2e-3) for half in halves)
    if (
        same
        and by_p > 0
        and by_q > 0
        and not math.isclose(by_p / (by_p + by_q), beta, abs_tol=2e-3)
    ):
        expected = f"{beta:.3g} and {1 - beta:.3g}"
        got = f"{by_p / (by_p + by_q):.3g} and {by_q / (by_p + by_q):.3g}"
        told = (f"M = {beta:.3g}·p + {1 - beta:.3g}·q", expected, got)
        yield finding("jsd_weights", told, weights=f"{got}, not {expected}")


def _halves(candidate, weight):
    """(β, weight of KL(p‖M), weight of KL(q‖M)) with M = βp + (1-β)q; None of another loss."""
    values = dict(candidate.parameters)
    return {
        "skew_kl": lambda: (values["alpha"], weight, 0.0),
        "skew_reverse_kl": lambda: (1 - values["alpha"], 0.0, weight),
        "jensen_shannon": lambda: (
            values["beta"],
            weight * values["beta"],
            weight * (1 - values["beta"]),
        ),
        "reverse_jensen_shannon": lambda: (
            1 - values["beta"],
            weight * (1 - values["beta"]),
            weight * values["beta"],
        ),
    }.get(candidate.name, lambda: None)()
