"""Losses with a known mistake: a side read wrongly, other classes, or a changed formula.

A mistake is only named if it reproduces every value with a factor that needs no explanation and
with plain numbers: a loss that isn't known must never be taken for a mistaken one.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxdiv.audit.candidates import TEMPERATURES, Candidate
from jaxdiv.audit.fit import Observed, centre, singles, weigh
from jaxdiv.audit.identify import Fit, is_near, is_plain
from jaxdiv.audit.inputs import Rows


class Roles(NamedTuple):
    """The terms in a formula's places of teacher's and student's probability and logarithm."""

    p: np.ndarray
    log_p: np.ndarray
    q: np.ndarray
    log_q: np.ndarray


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def _kl(a, log_a, log_b):
    return (a * (log_a - log_b)).sum(-1)


def _to_mixture(r, beta):
    log_m = np.log(beta * r.p + (1 - beta) * r.q)
    return _kl(r.p, r.log_p, log_m), _kl(r.q, r.log_q, log_m)


def _jensen_shannon(r, beta=0.5):
    by_p, by_q = _to_mixture(r, beta)
    return beta * by_p + (1 - beta) * by_q


_ANY_K = (1, 2, 3, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100)  # usual sizes of a truncation
# The formulas as an author writes them, in which each role may be read wrongly.
FORMULAS: dict[Candidate, Callable[[Roles], np.ndarray]] = {
    Candidate("forward_kl"): lambda r: _kl(r.p, r.log_p, r.log_q),
    Candidate("cross_entropy"): lambda r: -(r.p * r.log_q).sum(-1),
    Candidate("reverse_kl"): lambda r: _kl(r.q, r.log_q, r.log_p),
    Candidate("jensen_shannon"): _jensen_shannon,
    Candidate("total_variation"): lambda r: 0.5 * np.abs(r.p - r.q).sum(-1),
    Candidate("jeffreys"): lambda r: _kl(r.p, r.log_p, r.log_q) + _kl(r.q, r.log_q, r.log_p),
    Candidate("skew_kl"): lambda r: _to_mixture(r, 0.1)[0],
    Candidate("skew_reverse_kl"): lambda r: _to_mixture(r, 0.9)[1],
    Candidate("squared_hellinger"): lambda r: (
        0.5 * ((np.exp(r.log_p / 2) - np.exp(r.log_q / 2)) ** 2).sum(-1)
    ),
    Candidate("negative_log_acceptance"): lambda r: (
        -np.logaddexp.reduce(np.minimum(r.log_p, r.log_q), -1)
    ),
}
_KL, _CE, _RKL = list(FORMULAS)[:3]


class Transform(NamedTuple):
    """A wrong way from logits to roles.

    Attributes:
      mistakes: codes and details of its findings.
      roles: from logits of teacher and student, at temperatures of teacher and student.
      formulas: the losses it is tried with.
    """

    mistakes: tuple[tuple[str, dict], ...]
    roles: Callable[..., Roles]
    formulas: tuple[Candidate, ...] = tuple(FORMULAS)


def right_roles(teacher, student, t_teacher=1.0, t_student=1.0) -> Roles:
    log_p, log_q = log_softmax(teacher / t_teacher), log_softmax(student / t_student)
    return Roles(np.exp(log_p), log_p, np.exp(log_q), log_q)


def _distribution(log):
    return lambda z, t: (np.exp(log(z, t)), log(z, t))


# (code, from logits and T to what stands for a side's probability and logarithm)
_READINGS = (
    ("double_softmax", _distribution(lambda z, t: log_softmax(softmax(z / t)))),
    ("double_softmax", _distribution(lambda z, t: log_softmax(softmax(z) / t))),
    ("double_softmax", lambda z, t: (softmax(z / t), log_softmax(softmax(z / t)))),
    ("double_softmax", lambda z, t: (softmax(softmax(z / t)), log_softmax(z / t))),
    ("log_softmax_missing", lambda z, t: (softmax(z / t), z / t)),
    ("log_softmax_missing", lambda z, t: (np.exp(z / t), z / t)),
    ("log_missing", lambda z, t: (softmax(z / t), softmax(z / t))),
    ("log_missing", lambda z, t: (np.exp(softmax(z / t)), softmax(z / t))),
    ("softmax_missing", lambda z, t: (z / t, log_softmax(z / t))),
    ("softmax_missing", lambda z, t: (z / t, z / t)),
    ("softmax_missing", lambda z, t: (np.exp(z / t), log_softmax(z / t))),
    ("exp_missing", lambda z, t: (log_softmax(z / t), log_softmax(z / t))),
    ("sigmoid", _distribution(lambda z, t: -np.logaddexp(0, -z / t))),
    ("negated_logits", _distribution(lambda z, t: log_softmax(-z / t))),
)


def _clamps() -> Iterator[tuple]:
    """Yields readings with small probabilities clamped, in both roles or in the logarithm."""
    for size, clip, both in itertools.product(10.0 ** -np.arange(1, 8), *[(False, True)] * 2):
        how = f" at {size:.3g}" if clip else f" by adding {size:.3g}"

        def read(z, t, size=size, clip=clip, both=both):
            p = softmax(z / t)
            clamped = np.maximum(p, size) if clip else p + size
            return clamped if both else p, np.log(clamped)

        yield "clamped_log", {"how": how}, read


def _side_transforms() -> Iterator[Transform]:
    """Yields transforms in which one side, or both alike, is read wrongly."""
    readings = [(code, {}, read) for code, read in _READINGS] + list(_clamps())
    for code, details, read in readings:
        for side in ("student", "teacher", "student and teacher"):

            def roles(teacher, student, t_teacher, t_student, read=read, side=side):
                right = right_roles(teacher, student, t_teacher, t_student)
                p = read(teacher, t_teacher) if "teacher" in side else right[:2]
                q = read(student, t_student) if "student" in side else right[2:]
                return Roles(*p, *q)

            yield Transform(((code, details | {"side": side}),), roles)


def _class_transforms(classes: int, counts: tuple[int, ...]) -> Iterator[Transform]:
    """Yields transforms that change which classes take part.

    Args:
      classes: how many there are.
      counts: the sizes of a truncation to the largest classes that are worth trying.
    """

    def transform(code, change, **details):
        return Transform(((code, details),), lambda t, s, *temperatures: change(t, s, temperatures))

    for by in (1, -1):
        yield transform(
            "classes_misaligned",
            lambda t, s, temps, by=by: right_roles(np.roll(t, by, -1), s, *temps),
            shift=by,
        )
    for which, part in (("last", slice(None, -1)), ("first", slice(1, None))):
        yield transform(
            "classes_dropped",
            lambda t, s, temps, part=part: right_roles(t[..., part], s[..., part], *temps),
            which=which,
        )
    multiples = (-classes % multiple for multiple in (8, 16, 32, 64, 128, 256, 512))
    for count in sorted({*range(1, 9), *multiples} - {0}):

        def padded(t, s, temps, count=count):
            zeros = np.zeros((*t.shape[:-1], count))
            return right_roles(*(np.concatenate([side, zeros], -1) for side in (t, s)), *temps)

        yield transform("padded_vocabulary", padded, count=count)
    sizes = {k for k in _ANY_K if k < classes}
    for k in sorted(sizes | set(counts)):
        yield from _truncations(k, renormalized=k in counts)


def _truncations(k: int, renormalized: bool) -> Iterator[Transform]:
    """Yields truncations to the largest classes of the teacher, or the student."""

    def inside(side):
        return side >= -np.sort(-side, axis=-1)[..., k - 1, None]

    def by_teacher(t, s, *temps):
        return right_roles(*(np.where(inside(t), side, -200.0) for side in (t, s)), *temps)

    def by_student(t, s, *temps):
        return right_roles(*(np.where(inside(s), side, -200.0) for side in (t, s)), *temps)

    def teacher_alone(t, s, *temps):
        return right_roles(np.where(inside(t), t, -200.0), s, *temps)

    def cut(t, s, *temps):
        right = right_roles(t, s, *temps)
        return right._replace(p=right.p * inside(t), q=right.q * inside(t))

    details = {"k": k, "how": "renormalized to 1"}
    for change in (by_teacher, by_student, teacher_alone) if renormalized else ():
        yield Transform((("top_k", details),), change)
    # A cross-entropy of the teacher's largest classes as they are is a loss of the registry.
    others = tuple(candidate for candidate in FORMULAS if candidate != _CE)
    yield Transform((("top_k", {"k": k, "how": "not renormalized"}),), cut, others)


def _formula_fits(observed: Observed, rows: Rows) -> Iterator[Fit]:
    """Yields formulas that are nearly a loss, and those that are another comparison of logits."""
    forms = (
        ("student_entropy_dropped", _RKL, lambda r: -(r.q * r.log_p).sum(-1)),
        ("absolute_terms", _KL, lambda r: np.abs(r.p * (r.log_p - r.log_q)).sum(-1)),
        ("absolute_terms", _RKL, lambda r: np.abs(r.q * (r.log_p - r.log_q)).sum(-1)),
    )
    same = np.array([TEMPERATURES, TEMPERATURES])
    for code, meant, form in forms:
        transform = Transform(((code, {}),), right_roles)
        yield from _exact_fits(transform, {meant: form}, same, observed, rows)
    yield from _mixture_fits(observed, rows)


def other_comparison(observed: Observed, rows: Rows) -> str | None:
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


def variation_of_logits(observed: Observed, rows: Rows) -> Fit | None:
    """Returns total variation of what should be softmaxes, if the values are exactly that."""
    raw = ("softmax_missing", {"side": "student and teacher"})

    def predict(rows):
        return 0.5 * np.abs(rows.teacher - rows.student).sum(-1, dtype=np.float64)

    fit = Fit(((Candidate("total_variation"), 1.0),), (1.0, 1.0), predict, (raw,))
    return fit if observed.is_nothing(observed.values - predict(rows)) else None


def _mixture_fits(observed: Observed, rows: Rows) -> Iterator[Fit]:
    """Yields sums of two of KL(p‖M), KL(q‖M), KL(M‖p), KL(M‖q) that are no Jensen-Shannon one."""
    for t, beta in itertools.product((1.0, 2.0, 3.0, 4.0), np.arange(1, 10) / 10):

        def columns_of(rows, t=t, beta=beta):
            r = right_roles(rows.teacher, rows.student, t, t)
            m = beta * r.p + (1 - beta) * r.q
            from_m = _kl(m, np.log(m), r.log_p), _kl(m, np.log(m), r.log_q)
            return np.stack([*_to_mixture(r, beta), *from_m])

        columns = columns_of(rows)
        for i, j in itertools.combinations(range(4), 2):
            weights, residual = weigh(columns[[i, j]], observed)
            total = float(weights.sum())
            shares = weights / total
            exact = observed.is_nothing(observed.values - weights @ columns[[i, j]])
            plain = all(is_plain(share) for share in shares) and np.all(shares > 1e-2)
            right = (i, j) == (0, 1) and is_near(shares[0], beta)
            if residual > observed.allowed(weights) or not (exact and plain) or right:
                continue
            expected = f"{beta:.3g} and {1 - beta:.3g}"
            details = {"weights": f"{shares[0]:.3g} and {shares[1]:.3g}, not {expected}"}
            mistake = ("jsd_weights", details) if j == 1 else ("jsd_direction", {})

            def predict(rows, index=(i, j), weights=weights, columns_of=columns_of):
                return weights @ columns_of(rows)[list(index)]

            loss = Candidate("jensen_shannon", (("beta", float(beta)),))
            yield Fit(((loss, total),), (t, t), predict, (mistake,))


def mistaken_loss(observed: Observed, rows: Rows, counts: tuple[int, ...]) -> Fit | None:
    """Returns the plainest mistake that explains the values, with its loss; None if none does.

    Args:
      observed: values of `rows`.
      rows: ordinary ones.
      counts: the sizes of a truncation to the largest classes that are worth trying.
    """
    fits = list(_formula_fits(observed, rows))
    same = np.array([TEMPERATURES, TEMPERATURES])
    for transform in (*_side_transforms(), *_class_transforms(rows.student.shape[-1], counts)):
        formulas = {loss: FORMULAS[loss] for loss in transform.formulas}
        fits += _exact_fits(transform, formulas, same, observed, rows)
    different = np.array([*itertools.permutations(TEMPERATURES, 2)]).T
    fits += _exact_fits(Transform((), right_roles), FORMULAS, different, observed, rows)
    order = [candidate.name for candidate in FORMULAS]

    def doubts(fit):
        both = any(" and " in str(details.get("side")) for _, details in fit.mistakes)
        return both, fit.temperature != 1, order.index(fit.parts[0][0].name)

    return min(fits, key=doubts, default=None)


def student_mistake(observed: Observed, rows: Rows) -> Fit | None:
    """Returns a reading that explains values which lack the teacher's part, as integrals do."""
    same = np.array([TEMPERATURES, TEMPERATURES])
    for transform in _side_transforms():
        for loss, _, columns in _columns(transform, FORMULAS, same, observed.groups, rows):
            weights, residuals = singles(columns, observed)
            for t, weight, residual in zip(TEMPERATURES, weights, residuals, strict=True):
                limit = 10 * observed.allowed(weight)  # an integral has fewer digits
                if residual < limit and _is_plain_weight(weight, (t, t), loss, rows):
                    parts = ((loss, float(weight)),)
                    return Fit(parts, (t, t), lambda rows: np.nan, transform.mistakes)
    return None


def _columns(transform, formulas, temperatures, groups, rows) -> Iterator[tuple]:
    """Yields (loss, formula, values [temperatures, K]) of formulas that the transform changes.

    A mistake that changes next to nothing explains nothing: its values are NaN.
    """
    teacher, student = rows.teacher.astype(np.float64), rows.student.astype(np.float64)
    t_teacher, t_student = np.asarray(temperatures)[:, :, None, None]
    with np.errstate(all="ignore"):
        roles = transform.roles(teacher, student, t_teacher, t_student)
        right = right_roles(teacher, student, t_teacher, t_student)
        for loss, form in formulas.items():
            got = form(roles)
            if transform.mistakes:
                expected = FORMULAS[loss](right)
                change = np.abs(got - expected).max(-1) > 1e-2 * np.abs(expected).max(-1)
                moved, size = (
                    np.linalg.norm(centre(x, groups), axis=-1) for x in (got - expected, expected)
                )
                got = np.where((change | (moved > 3e-4 * size))[:, None], got, np.nan)
            if np.any(np.isfinite(got)):
                yield loss, form, got


def _exact_fits(transform: Transform, formulas, temperatures, observed, rows) -> Iterator[Fit]:
    """Yields losses under the transform that reproduce every value with a plain factor."""
    y = observed.values
    for loss, form, columns in _columns(transform, formulas, temperatures, observed.groups, rows):
        with np.errstate(all="ignore"):
            factors = columns @ y / (columns * columns).sum(-1)
            off = np.abs(y - factors[:, None] * columns).max(-1)
        for k in np.flatnonzero(off < 2e-4 * observed.size):
            weight, pair = float(factors[k]), tuple(map(float, temperatures[:, k]))
            _, (residual,) = singles(columns[k : k + 1], observed)
            is_close = residual < observed.allowed(weight)
            if is_close and _is_plain_weight(weight, pair, loss, rows):
                yield _mistaken_fit(transform, loss, form, weight, pair)


def _is_plain_weight(weight, temperatures, loss, rows) -> bool:
    """Returns whether a weight is T^k, over V if a mean is taken."""
    units = (1, 1 / rows.student.shape[-1])
    cases = itertools.product(temperatures, (loss.entry.temperature_power, 0, 1, 2), units)
    return any(is_near(abs(weight), unit * t**power) for t, power, unit in cases)


def _mistaken_fit(transform, loss, form, weight, temperatures) -> Fit:
    def predict(rows):
        teacher, student = rows.teacher.astype(np.float64), rows.student.astype(np.float64)
        with np.errstate(all="ignore"):
            return weight * form(transform.roles(teacher, student, *temperatures))

    mistakes = transform.mistakes
    if temperatures[0] != temperatures[1]:
        details = {"teacher": temperatures[0], "student": temperatures[1]}
        mistakes = (*mistakes, ("temperature_one_side", details))
    return Fit(((loss, weight),), temperatures, predict, mistakes)
