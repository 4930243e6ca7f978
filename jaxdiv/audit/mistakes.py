"""Losses with a known mistake: a side transformed wrongly, other classes, or a changed formula.

A mistake is only named if it reproduces every value with a factor that needs no explanation: a loss
that isn't known must never be taken for a mistaken one.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxdiv.audit.candidates import TEMPERATURES, Candidate
from jaxdiv.audit.fit import Observed, centre, singles
from jaxdiv.audit.identify import Fit, is_near
from jaxdiv.audit.inputs import ProbeRows

_CLAMPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
_USUAL_K = (1, 2, 3, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100)  # sizes of a truncation


class Roles(NamedTuple):
    """The terms in a formula's places of teacher's and student's probability and logarithm."""

    p: np.ndarray
    log_p: np.ndarray
    q: np.ndarray
    log_q: np.ndarray


Formula = Callable[[Roles], np.ndarray]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def right_roles(teacher, student, t_teacher=1.0, t_student=1.0) -> Roles:
    log_p, log_q = log_softmax(teacher / t_teacher), log_softmax(student / t_student)
    return Roles(np.exp(log_p), log_p, np.exp(log_q), log_q)


def _kl(a, log_a, log_b):
    return (a * (log_a - log_b)).sum(-1)


def _mixture_parts(r: Roles, beta: float) -> tuple[np.ndarray, ...]:
    """Returns KL(p‖M), KL(q‖M), KL(M‖p) and KL(M‖q) with M = βp + (1-β)q."""
    m = beta * r.p + (1 - beta) * r.q
    log_m = np.log(m)
    to_m = _kl(r.p, r.log_p, log_m), _kl(r.q, r.log_q, log_m)
    return *to_m, _kl(m, log_m, r.log_p), _kl(m, log_m, r.log_q)


_KL, _CE, _RKL = map(Candidate, ("forward_kl", "cross_entropy", "reverse_kl"))
# The formulas as an author writes them, in which each role may be transformed wrongly.
FORMULAS: Mapping[Candidate, Formula] = {
    _KL: lambda r: _kl(r.p, r.log_p, r.log_q),
    _CE: lambda r: -(r.p * r.log_q).sum(-1),
    _RKL: lambda r: _kl(r.q, r.log_q, r.log_p),
    Candidate("jensen_shannon"): lambda r: sum(_mixture_parts(r, 0.5)[:2]) / 2,
    Candidate("total_variation"): lambda r: 0.5 * np.abs(r.p - r.q).sum(-1),
    Candidate("jeffreys"): lambda r: _kl(r.p, r.log_p, r.log_q) + _kl(r.q, r.log_q, r.log_p),
    Candidate("skew_kl"): lambda r: _mixture_parts(r, 0.1)[0],
    Candidate("skew_reverse_kl"): lambda r: _mixture_parts(r, 0.9)[1],
    Candidate("squared_hellinger"): lambda r: (
        0.5 * ((np.exp(r.log_p / 2) - np.exp(r.log_q / 2)) ** 2).sum(-1)
    ),
    Candidate("negative_log_acceptance"): lambda r: (
        -np.logaddexp.reduce(np.minimum(r.log_p, r.log_q), -1)
    ),
}


class Wrong(NamedTuple):
    """One mistake: its code and details, the roles that it makes of logits, and its formulas.

    `roles` takes logits [K, V] of teacher and student, and their temperatures [n, 1, 1].
    """

    code: str
    details: dict
    roles: Callable[..., Roles]
    formulas: Mapping[Candidate, Formula] = FORMULAS


def _distribution(log):
    return lambda z: (np.exp(log(z)), log(z))


# (code, from logits at T to what stands for a side's probability and logarithm)
_TRANSFORMS = (
    ("double_softmax", _distribution(lambda z: log_softmax(softmax(z)))),
    ("double_softmax", lambda z: (softmax(z), log_softmax(softmax(z)))),
    ("double_softmax", lambda z: (softmax(softmax(z)), log_softmax(z))),
    ("log_softmax_missing", lambda z: (softmax(z), z)),
    ("log_softmax_missing", lambda z: (np.exp(z), z)),
    ("log_missing", lambda z: (softmax(z), softmax(z))),
    ("log_missing", lambda z: (np.exp(softmax(z)), softmax(z))),
    ("softmax_missing", lambda z: (z, log_softmax(z))),
    ("softmax_missing", lambda z: (z, z)),
    ("softmax_missing", lambda z: (np.exp(z), log_softmax(z))),
    ("exp_missing", lambda z: (log_softmax(z), log_softmax(z))),
    ("sigmoid", _distribution(lambda z: -np.logaddexp(0, -z))),
    ("negated_logits", _distribution(lambda z: log_softmax(-z))),
)


def _clamp(z, size, clip, both):
    """Returns probability and logarithm with small probabilities clamped, or the latter alone."""
    p = softmax(z)
    clamped = np.maximum(p, size) if clip else p + size
    return clamped if both else p, np.log(clamped)


def _wrong_sides() -> Iterator[Wrong]:
    """Yields mistakes in which one side, or both alike, is transformed wrongly."""
    transforms = [(code, {}, transform) for code, transform in _TRANSFORMS]
    for size, clip, both in itertools.product(_CLAMPS, (False, True), (False, True)):
        how = f" at {size:.3g}" if clip else f" by adding {size:.3g}"
        options = {"size": size, "clip": clip, "both": both}
        transforms.append(("clamped_log", {"how": how}, lambda z, o=options: _clamp(z, **o)))
    for code, details, transform in transforms:
        for side in ("student", "teacher", "student and teacher"):

            def roles(teacher, student, t_teacher, t_student, transform=transform, side=side):
                right = right_roles(teacher, student, t_teacher, t_student)
                p = transform(teacher / t_teacher) if "teacher" in side else right[:2]
                q = transform(student / t_student) if "student" in side else right[2:]
                return Roles(*p, *q)

            yield Wrong(code, details | {"side": side}, roles)


def _wrong_classes(classes: int, counts: tuple[int, ...]) -> Iterator[Wrong]:
    """Yields mistakes in which classes take part: shifted, left out, padded, or the largest."""

    def wrong(code, change, formulas=FORMULAS, **details):
        return Wrong(code, details, lambda t, s, *temps: change(t, s, temps), formulas)

    def pad(t, s, temps, count):
        zeros = np.zeros((*t.shape[:-1], count))
        return right_roles(*(np.concatenate([side, zeros], -1) for side in (t, s)), *temps)

    def inside(t, k):
        return t >= -np.sort(-t, axis=-1)[..., k - 1, None]

    def largest(t, s, temps, k, alone):
        student = s if alone else np.where(inside(t, k), s, -200.0)
        return right_roles(np.where(inside(t, k), t, -200.0), student, *temps)

    def cut(t, s, temps, k):
        right = right_roles(t, s, *temps)
        return right._replace(p=right.p * inside(t, k), q=right.q * inside(t, k))

    for by in (1, -1):
        change = lambda t, s, temps, by=by: right_roles(np.roll(t, by, -1), s, *temps)  # noqa: E731
        yield wrong("classes_misaligned", change, shift=by)
    for which, part in (("last", slice(None, -1)), ("first", slice(1, None))):
        change = lambda t, s, temps, i=part: right_roles(t[..., i], s[..., i], *temps)  # noqa: E731
        yield wrong("classes_dropped", change, which=which)
    for count in sorted({*range(1, 9), *(-classes % 2**power for power in range(3, 10))} - {0}):
        yield wrong("padded_vocabulary", functools.partial(pad, count=count), count=count)
    for k, alone in itertools.product(counts, (False, True)):
        change = functools.partial(largest, k=k, alone=alone)
        yield wrong("top_k", change, k=k, how="renormalized to 1")
    # A cross-entropy of the teacher's largest classes as they are is a loss of the registry.
    others = {loss: form for loss, form in FORMULAS.items() if loss != _CE}
    for k in (k for k in _USUAL_K if k < classes):
        yield wrong("top_k", functools.partial(cut, k=k), others, k=k, how="not renormalized")


def _wrong_formulas() -> Iterator[Wrong]:
    """Yields formulas that are nearly a loss."""

    def wrong(code, loss, form, **details):
        return Wrong(code, details, right_roles, {loss: form})

    yield wrong("student_entropy_dropped", _RKL, lambda r: -(r.q * r.log_p).sum(-1))
    yield wrong("absolute_terms", _KL, lambda r: np.abs(r.p * (r.log_p - r.log_q)).sum(-1))
    yield wrong("absolute_terms", _RKL, lambda r: np.abs(r.q * (r.log_p - r.log_q)).sum(-1))
    for beta in np.arange(1, 10) / 10:
        loss = Candidate("jensen_shannon", (("beta", float(beta)),))

        def mix(r, i, j, weight, beta=beta):
            parts = _mixture_parts(r, beta)
            return weight * parts[i] + (1 - weight) * parts[j]

        for i, j in ((0, 3), (2, 1), (2, 3)):
            yield wrong("jsd_direction", loss, functools.partial(mix, i=i, j=j, weight=beta))
        if beta != 0.5:
            interchanged = functools.partial(mix, i=0, j=1, weight=1 - beta)
            weights = f"{1 - beta:.3g} and {beta:.3g}, not {beta:.3g} and {1 - beta:.3g}"
            yield wrong("jsd_weights", loss, interchanged, weights=weights)


def mistaken_loss(observed: Observed, rows: ProbeRows, counts: tuple[int, ...]) -> Fit | None:
    """Returns the plainest mistake that explains the values, with its loss; None if none does.

    Args:
      observed: values of `rows`.
      rows: ordinary ones.
      counts: the sizes of a truncation to the largest classes that are worth trying.
    """
    same = np.array([TEMPERATURES, TEMPERATURES])
    classes = rows.student.shape[-1]
    fits = []
    for wrong in (*_wrong_formulas(), *_wrong_sides(), *_wrong_classes(classes, counts)):
        fits += _fits(wrong, same, observed, rows)
    different = np.array([*itertools.permutations(TEMPERATURES, 2)]).T
    fits += _fits(Wrong("temperature_one_side", {}, right_roles), different, observed, rows)

    def doubts(fit):
        ((_, details),) = fit.mistakes
        return " and " in str(details.get("side")), fit.temperature != 1

    return min(fits, key=doubts, default=None)


def student_mistake(observed: Observed, rows: ProbeRows) -> Fit | None:
    """Returns a wrong transform that explains integrals, which lack the teacher's part."""
    same = np.array([TEMPERATURES, TEMPERATURES])
    fits = (fit for w in _wrong_sides() for fit in _fits(w, same, observed, rows, exact=False))
    return next(fits, None)


def _fits(
    wrong: Wrong, temperatures: np.ndarray, observed: Observed, rows: ProbeRows, exact: bool = True
) -> Iterator[Fit]:
    """Yields losses under a mistake that reproduce every value with a plain factor.

    Args:
      wrong: the mistake.
      temperatures: of teacher and student, [2, n].
      observed: the values.
      rows: their rows.
      exact: whether a function of the teacher may not be added, and float32's digits are expected.
    """
    teacher, student = rows.teacher.astype(np.float64), rows.student.astype(np.float64)
    logits = teacher, student, *temperatures[:, :, None, None]
    with np.errstate(all="ignore"):
        roles, right = wrong.roles(*logits), right_roles(*logits)
        for loss, form in wrong.formulas.items():
            columns = form(roles)
            weights, residuals = singles(columns, observed)
            for k in np.flatnonzero(residuals < 1e-2):
                weight, both = float(weights[k]), tuple(map(float, temperatures[:, k]))
                limit = observed.allowed(weight) * (1 if exact else 10)
                off = exact and not observed.is_nothing(observed.values - weight * columns[k])
                if residuals[k] > limit or off or not _is_plain(weight, both, loss, rows):
                    continue
                if wrong.roles is right_roles or _matters(
                    columns[k], FORMULAS[loss](right)[k], observed
                ):
                    yield _fit(wrong, loss, form, weight, both)


def _matters(got: np.ndarray, expected: np.ndarray, observed: Observed) -> bool:
    """Returns whether a mistake changes more than next to nothing, which explains nothing."""
    change, both = got - expected, (got - expected, expected)
    moved, size = (np.linalg.norm(centre(part, observed.groups)) for part in both)
    return np.abs(change).max() > 1e-2 * np.abs(expected).max() or moved > 3e-4 * size


def _is_plain(weight, temperatures, loss, rows) -> bool:
    """Returns whether a weight is T^k, over V if a mean is taken."""
    units = (1, 1 / rows.student.shape[-1])
    cases = itertools.product(temperatures, (loss.entry.temperature_power, 0, 1, 2), units)
    return any(is_near(abs(weight), unit * t**power) for t, power, unit in cases)


def _fit(
    wrong: Wrong, loss: Candidate, form: Formula, weight: float, temperatures: tuple[float, float]
) -> Fit:
    details = wrong.details
    if wrong.code == "temperature_one_side":
        details = {"teacher": temperatures[0], "student": temperatures[1]}

    def predict(rows):
        teacher, student = rows.teacher.astype(np.float64), rows.student.astype(np.float64)
        with np.errstate(all="ignore"):
            return weight * form(wrong.roles(teacher, student, *temperatures))

    return Fit(((loss, weight),), temperatures, predict, ((wrong.code, details),))


def variation_of_logits(observed: Observed, rows: ProbeRows) -> Fit | None:
    """Returns total variation of what should be softmaxes, if the values are exactly that."""

    def predict(rows):
        return 0.5 * np.abs(rows.teacher - rows.student).sum(-1, dtype=np.float64)

    mistake = ("softmax_missing", {"side": "student and teacher"})
    fit = Fit(((Candidate("total_variation"), 1.0),), (1.0, 1.0), predict, (mistake,))
    return fit if observed.is_nothing(observed.values - predict(rows)) else None


def other_comparison(observed: Observed, rows: ProbeRows) -> str | None:
    """Returns a comparison of logits that is neither a loss of the registry nor a mistake."""
    student, teacher = rows.student.astype(np.float64), rows.teacher.astype(np.float64)
    norms = np.sqrt((student**2).sum(-1) * (teacher**2).sum(-1))
    forms = {
        "Σ (q-p)², the Brier score": ((softmax(teacher) - softmax(student)) ** 2).sum(-1),
        "the product of the logits": (student * teacher).sum(-1),
        "the cosine of the logits": (student * teacher).sum(-1) / norms,
    }
    weights, residuals = singles(np.stack([*forms.values()]), observed)
    fits = residuals < [observed.allowed(weight) for weight in weights]
    return next((text for text, fit in zip(forms, fits, strict=True) if fit), None)
