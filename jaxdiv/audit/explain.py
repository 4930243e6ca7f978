"""Names the loss of the registry, or the weighted pair, that the observed values are."""

import math
from dataclasses import replace

import numpy as np

from jaxdiv.audit.fits import Fit, Observed, is_near, pair_fits, single_fits
from jaxdiv.audit.formulas import POPULAR, Candidate, plain_candidates, right
from jaxdiv.audit.refine import refined_fits


def exact_loss(observed: Observed) -> Fit | None:
    """Returns a loss with its usual parameters, or a popular pair, that explains everything.

    Nothing is left over and no factor is unexplained, so that no other loss has to be tried.
    """
    plain, classes = plain_candidates(), observed.rows.student.shape[-1]
    popular = plain[: len(POPULAR)]
    labels = next(c for c in popular if c.entry.target == "labels")
    partners = right([*popular, replace(labels, at_temperature=True), Candidate("z_loss")])
    fits = [
        fit
        for fit in (*single_fits(right(plain), observed), *pair_fits(partners, observed, 6))
        if not fit.extra and not fit.is_odd and fit.is_explained(classes)
    ]
    # Rényi's is twice Bhattacharyya's: the one whose weight is right is meant.
    weighted = (f for f in fits if all(is_near(w, f.temperature**c.power) for c, w in f.parts))
    return next(weighted, fits[0] if fits else None)


def any_loss(observed: Observed) -> Fit | None:
    """Returns the plainest single loss or pair of the registry that explains the values."""
    plain, classes = plain_candidates(), observed.rows.student.shape[-1]
    varied = [variant for candidate in plain for variant in candidate.variants(classes)]

    def doubts(fit):
        changed = sum(v != c.entry.defaults[k] for c, _ in fit.parts for k, v in c.parameters)
        text = "".join(candidate.text for candidate, _ in fit.parts)
        unclear = not fit.is_explained(classes)
        return bool(fit.extra), unclear, len(fit.parts), changed, fit.temperature != 1, len(text)

    for stage in (
        single_fits(right(plain), observed),
        refined_fits(plain, observed, free=False),
        single_fits(right(varied), observed),
        refined_fits(plain + varied, observed, free=True),
        pair_fits(right(plain + varied), observed, 30),
    ):
        fits = [fit for fit in stage if not fit.is_odd]
        if fits:
            return min(fits, key=doubts)
    return None


def close_loss(observed: Observed) -> Fit | None:
    """Returns a popular loss that explains values in steps, as after a cast, to two digits."""
    rough, fits = replace(observed, tolerance=2e-2), []
    for fit in single_fits(right(plain_candidates()[: len(POPULAR)]), rough):
        ((candidate, weight),) = fit.parts
        factor = fit.temperature**candidate.power
        left = observed.values - fit.predict(observed.rows)
        if math.isclose(weight, factor, rel_tol=2e-2) and np.abs(left).max() < 0.05 * observed.size:
            residual = np.linalg.norm(observed.centre(left)) / np.linalg.norm(observed.centred)
            exact = replace(fit, parts=((candidate, factor),), loose=True, extra="")
            fits.append((residual > 5e-3, fit.temperature != 1, residual, exact))
    return min(fits, key=lambda each: each[:3])[-1] if fits else None
