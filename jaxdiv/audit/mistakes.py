"""Losses with a known mistake: a side transformed wrongly, other classes, or a changed formula.

A mistake is only named if it reproduces every value with a factor that needs no explanation: a loss
that isn't known must never be taken for a mistaken one.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxdiv.audit.fits import Fit, Observed, single_fits
from jaxdiv.audit.formulas import (
    SAME,
    TEMPERATURES,
    Candidate,
    Family,
    largest,
    log_softmax,
    mixture_parts,
    plain_candidates,
    right,
    right_roles,
    softmax,
)

_CLAMPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
_USUAL_K = (1, 2, 3, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100)  # sizes of a truncation
_ABSENT = -300.0  # the logit of a class that is left out: no temperature makes its probability 0
_KL, _CE, _RKL = map(Candidate, ("forward_kl", "cross_entropy", "reverse_kl"))
_NAMES = {  # of the losses in which mistakes are sought
    "forward_kl",
    "cross_entropy",
    "reverse_kl",
    "jensen_shannon",
    "total_variation",
    "jeffreys",
    "skew_kl",
    "skew_reverse_kl",
    "squared_hellinger",
    "negative_log_acceptance",
}
_USUAL = right(candidate for candidate in plain_candidates() if candidate.name in _NAMES).formulas


def _distribution(log):
    return lambda z: (np.exp(log(z)), log(z))


def _clamp(z: np.ndarray, size: float, clip: bool, both: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns probability and logarithm with small probabilities clamped, or the latter alone."""
    p = softmax(z)
    clamped = np.maximum(p, size) if clip else p + size
    return clamped if both else p, np.log(clamped)


# (code, details, from logits at T to what stands for a side's probability and logarithm)
_TRANSFORMS = (
    ("double_softmax", {}, _distribution(lambda z: log_softmax(softmax(z)))),
    ("double_softmax", {}, lambda z: (softmax(z), log_softmax(softmax(z)))),
    ("double_softmax", {}, lambda z: (softmax(softmax(z)), log_softmax(z))),
    ("log_softmax_missing", {}, lambda z: (softmax(z), z)),
    ("log_softmax_missing", {}, lambda z: (np.exp(z), z)),
    ("log_missing", {}, lambda z: (softmax(z), softmax(z))),
    ("log_missing", {}, lambda z: (np.exp(softmax(z)), softmax(z))),
    ("softmax_missing", {}, lambda z: (z, log_softmax(z))),
    ("softmax_missing", {}, lambda z: (z, z)),
    ("softmax_missing", {}, lambda z: (np.exp(z), log_softmax(z))),
    ("exp_missing", {}, lambda z: (log_softmax(z), log_softmax(z))),
    ("sigmoid", {}, _distribution(lambda z: -np.logaddexp(0, -z))),
    ("negated_logits", {}, _distribution(lambda z: log_softmax(-z))),
    *(
        (
            "clamped_log",
            {"how": f" at {size:.3g}" if clip else f" by adding {size:.3g}"},
            functools.partial(_clamp, size=size, clip=clip, both=both),
        )
        for size, clip, both in itertools.product(_CLAMPS, (False, True), (False, True))
    ),
)


def _wrong_sides() -> Iterator[Family]:
    """Yields mistakes in which one side, or both alike, is transformed wrongly."""
    for code, details, transform in _TRANSFORMS:
        for side in ("student", "teacher", "student and teacher"):

            def roles(rows, t_teacher, t_student, transform=transform, side=side):
                places = right_roles(rows, t_teacher, t_student)
                if "teacher" in side:
                    p, log_p = transform(rows.teacher / t_teacher[:, None, None])
                    places = places._replace(p=p, log_p=log_p)
                if "student" in side:
                    q, log_q = transform(rows.student / t_student[:, None, None])
                    places = places._replace(q=q, log_q=log_q)
                return places

            yield Family(_USUAL, roles, code, details | {"side": side})


def _wrong_classes(classes: int, counts: tuple[int, ...]) -> Iterator[Family]:
    """Yields mistakes in which classes take part: shifted, left out, padded, or the largest."""

    def family(code, change, **details):
        def roles(rows, *temperatures):
            student, teacher = change(rows.student, rows.teacher)
            return right_roles(rows._replace(student=student, teacher=teacher), *temperatures)

        return Family(_USUAL, roles, code, details)

    def keep(student, teacher, k, alone):
        inside = largest(teacher, k)
        cut_student = student if alone else np.where(inside, student, _ABSENT)
        return cut_student, np.where(inside, teacher, _ABSENT)

    def cut(rows, *temperatures, k):
        places, inside = right_roles(rows, *temperatures), largest(rows.teacher, k)
        return places._replace(p=places.p * inside, q=places.q * inside)

    for by in (1, -1):
        yield family("classes_misaligned", lambda s, t, by=by: (s, np.roll(t, by, -1)), shift=by)
    yield family("classes_dropped", lambda s, t: (s[:, :-1], t[:, :-1]), which="last")
    yield family("classes_dropped", lambda s, t: (s[:, 1:], t[:, 1:]), which="first")
    for count in sorted({*range(1, 9), *(-classes % 2**power for power in range(3, 10))} - {0}):
        width = (0, 0), (0, count)
        pad = lambda s, t, width=width: (np.pad(s, width), np.pad(t, width))  # noqa: E731
        yield family("padded_vocabulary", pad, count=count)
    for k, alone in itertools.product(counts, (False, True)):
        change = functools.partial(keep, k=k, alone=alone)
        yield family("top_k", change, k=k, how="renormalized to 1")
    # A cross-entropy of the teacher's largest classes as they are is a loss of the registry.
    others = {loss: form for loss, form in _USUAL.items() if loss.name != _CE.name}
    for k in (k for k in _USUAL_K if k < classes):
        details = {"k": k, "how": "not renormalized"}
        yield Family(others, functools.partial(cut, k=k), "top_k", details)


def _wrong_formulas() -> Iterator[Family]:
    """Yields formulas that are nearly a loss."""

    def family(code, loss, form, **details):
        return Family({loss: form}, right_roles, code, details)

    yield family("student_entropy_dropped", _RKL, lambda r: -(r.q * r.log_p).sum(-1))
    yield family("absolute_terms", _KL, lambda r: np.abs(r.p * (r.log_p - r.log_q)).sum(-1))
    yield family("absolute_terms", _RKL, lambda r: np.abs(r.q * (r.log_p - r.log_q)).sum(-1))
    for beta in np.arange(1, 10) / 10:
        jsd = Candidate("jensen_shannon", (("beta", float(beta)),))

        def mix(r, i, j, weight, beta=beta):
            parts = mixture_parts(r, beta)
            return weight * parts[i] + (1 - weight) * parts[j]

        for i, j in ((0, 3), (2, 1), (2, 3)):
            yield family("jsd_direction", jsd, functools.partial(mix, i=i, j=j, weight=beta))
        if beta != 0.5:
            form = functools.partial(mix, i=0, j=1, weight=1 - beta)
            weights = f"{1 - beta:.3g} and {beta:.3g}, not {beta:.3g} and {1 - beta:.3g}"
            yield family("jsd_weights", jsd, form, weights=weights)


def mistaken_loss(observed: Observed, counts: tuple[int, ...]) -> Fit | None:
    """Returns the plainest mistake that explains the values, with its loss; None if none does.

    Args:
      observed: values of ordinary rows.
      counts: the sizes of a truncation to the largest classes that are worth trying.
    """
    classes = observed.rows.student.shape[-1]
    different = np.array([*itertools.permutations(TEMPERATURES, 2)]).T
    families = *_wrong_formulas(), *_wrong_sides(), *_wrong_classes(classes, counts)
    fits = [fit for family in families for fit in _mistakes(family, observed)]
    one_sided = Family(_USUAL, right_roles, "temperature_one_side")
    fits = [fit for fit in (*fits, *_mistakes(one_sided, observed, different)) if not fit.extra]

    def doubts(fit):
        ((_, details),) = fit.mistakes
        return " and " in str(details.get("side")), fit.temperature != 1

    return min(fits, key=doubts, default=None)


def student_mistake(observed: Observed) -> Fit | None:
    """Returns a wrong transform that explains integrals, which lack the teacher's part."""
    fits = (fit for family in _wrong_sides() for fit in _mistakes(family, observed))
    return next((replace(fit, extra="") for fit in fits), None)


def _mistakes(family: Family, observed: Observed, temperatures: np.ndarray = SAME) -> Iterator[Fit]:
    """Yields losses of a wrong family whose factor is plain and whose mistake shows."""
    for fit in single_fits(family, observed, temperatures):
        if not fit.is_explained(observed.rows.student.shape[-1]):
            continue
        if family.roles is not right_roles:
            # A mistake that changes next to nothing explains nothing.
            expected = replace(fit, family=right(fit.family.formulas)).predict(observed.rows)
            change = fit.predict(observed.rows) - expected
            moved, size = (np.linalg.norm(observed.centre(part)) for part in (change, expected))
            small = np.abs(change).max() <= 1e-2 * np.abs(expected).max()
            if small and moved <= 3e-4 * size:
                continue
        t_teacher, t_student = fit.temperatures
        details = {"teacher": t_teacher, "student": t_student, **family.details}
        yield replace(fit, mistakes=((family.code, details),))


def other_comparison(observed: Observed) -> str | None:
    """Returns a comparison of logits that is neither a loss of the registry nor a mistake."""
    student, teacher = (side.astype(np.float64) for side in observed.rows[:2])
    norms = np.sqrt((student**2).sum(-1) * (teacher**2).sum(-1))
    forms = {
        "Σ (q-p)², the Brier score": ((softmax(teacher) - softmax(student)) ** 2).sum(-1),
        "the product of the logits": (student * teacher).sum(-1),
        "the cosine of the logits": (student * teacher).sum(-1) / norms,
    }
    weights, residuals = observed.singles(np.stack([*forms.values()]))
    fits = residuals < observed.allowed(weights)
    return next((text for text, fit in zip(forms, fits, strict=True) if fit), None)
