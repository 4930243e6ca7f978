"""Identifies a loss: of the registry as it stands, under a mistake, or neither."""

from dataclasses import replace

import numpy as np

from jaxdiv.audit import mistakes
from jaxdiv.audit.calls import CallError, Probe
from jaxdiv.audit.edges import integrate
from jaxdiv.audit.explain import any_loss, close_loss, exact_loss
from jaxdiv.audit.findings import finding
from jaxdiv.audit.fits import Fit, Observed, is_near
from jaxdiv.audit.formulas import log_softmax, softmax
from jaxdiv.audit.inputs import ProbeRows, random_rows
from jaxdiv.audit.layout import Subject, examine_layout
from jaxdiv.audit.reduction import examine_reduction

_MANY = 131  # classes, at which a mean over V, a truncation or padding shows
# What a loss may take in the place of logits, and the code of that mistake.
_ARGUMENTS = {
    "": lambda x: x,
    "log_softmax_missing": lambda x: np.float32(log_softmax(x)),
    "softmax_missing": lambda x: np.float32(softmax(x)),
}


def identify_loss(probe: Probe) -> Subject:
    """Returns the loss with its divergence, from few classes and from many."""
    subject = examine_reduction(examine_layout(probe))
    if subject.axis is not None:
        return subject
    observed = subject.observe(subject.rows)
    if not np.all(np.isfinite(observed.values)):
        return _identify_despite_nan(subject, observed)
    if subject.coarse:
        return replace(subject, fit=close_loss(observed))
    if np.max(np.abs(observed.centred)) < 1e-6 * observed.size:
        return subject
    subject = _at_many_classes(replace(subject, fit=_explain(subject, observed)))
    fit = subject.fit
    adaptive = fit and fit.is_right and any("λ" in c.entry.formula for c, _ in fit.parts)
    if not (subject.interacting and adaptive):
        return subject
    # An adaptive weight of the whole batch is no mistake: papers may have it.
    codes = "batch_dependence", "rows_interact"
    rest = tuple(one for one in subject.findings if one.code not in codes)
    evidence = "two rows changed, alone and together", "the changes add up", "they don't"
    return replace(subject, findings=(*rest, finding("batch_weight", evidence)))


def _explain(subject: Subject, observed: Observed) -> Fit | None:
    """Returns the loss, or the mistake in one, that explains the values of ordinary rows.

    What is common comes first. All of them must explain the values exactly, so that the order
    decides next to nothing.
    """
    fit = exact_loss(observed)
    if fit is not None:
        return fit
    matters = _class_matters(subject, observed.rows)
    fit = _fit_first_classes(observed, matters)
    if fit is None and sees_difference_alone(subject):
        # Of these only total variation without its softmaxes is a mistake: absolute errors with
        # another factor, and squared ones, need none.
        fit = mistakes.mistaken_loss(observed, ())
        (loss, weight), *_ = fit.parts if fit else ((None, 0.0),)
        return fit if loss and loss.name == "total_variation" and is_near(weight, 1) else None
    if fit is None and not sides_apart(subject) and not mistakes.other_comparison(observed):
        fit = _fit_other_arguments(subject)
        fit = fit or mistakes.mistaken_loss(observed, _counts(matters))
    return fit or any_loss(observed)


def sees_difference_alone(subject: Subject) -> bool:
    """Returns whether one random array added to the logits of both sides changes nothing."""
    rows = subject.rows
    away = np.random.default_rng(41).normal(size=rows.student.shape).astype(np.float32)
    moved = rows._replace(student=rows.student + away, teacher=rows.teacher + away)
    base = subject.observe(rows)
    return base.is_nothing(subject.observe(moved).values - base.values)


def sides_apart(subject: Subject) -> bool:
    """Returns whether the value is a function of the student and one of the teacher, added."""
    few, values = subject.rows.take(slice(None, None, 5)), {}
    for s, t in np.ndindex(2, 2):
        student, teacher = np.roll(few.student, s, 0), np.roll(few.teacher, t, 0)
        moved = ProbeRows(student, teacher, np.roll(few.labels, t), few.groups)
        values[s, t] = subject.observe(moved).values
    together = values[0, 0] - values[0, 1] - values[1, 0] + values[1, 1]
    return bool(np.max(np.abs(together)) < 1e-5 * np.max(np.abs(values[0, 0])))


def _identify_despite_nan(subject: Subject, observed: Observed) -> Subject:
    """Identifies the student's part by gradients, where a term of the teacher alone may be NaN."""
    fit = _fit_other_arguments(subject)
    if fit is not None:
        return replace(subject, fit=fit)
    got = float(observed.values[~np.isfinite(observed.values)][0])
    evidence = "logits of size 1.5", "a finite value", got
    subject = subject.adding(finding("nan_on_ordinary_logits", evidence))
    values = None if subject.interacting or subject.coarse else integrate(subject)
    if values is None or not np.all(np.isfinite(values)):
        return subject
    fit = mistakes.student_mistake(Observed(values, subject.rows, tolerance=3e-4))
    return replace(subject, fit=fit)


def _fit_other_arguments(subject: Subject) -> Fit | None:
    """Returns a loss that is right once probabilities or log-probabilities are handed to it."""
    kinds = [(s, t) for s in _ARGUMENTS for t in _ARGUMENTS if s or t]
    for codes in sorted(kinds, key=all):  # one side before both

        def changed(rows, student=_ARGUMENTS[codes[0]], teacher=_ARGUMENTS[codes[1]]):
            return rows._replace(student=student(rows.student), teacher=teacher(rows.teacher))

        observed = subject.observe(changed(subject.rows))
        if not np.all(np.isfinite(observed.values)) or np.ptp(observed.centred) < 1e-6:
            continue
        fit = exact_loss(replace(observed, rows=subject.rows))
        if fit is not None:
            sides = zip(codes, ("student", "teacher"), strict=True)
            wrong = tuple((code, {"side": side}) for code, side in sides if code)
            return replace(fit, mistakes=wrong, arguments=changed)
    return None


def _class_matters(subject: Subject, rows: ProbeRows) -> np.ndarray:
    """Returns whether each class's logit of student and teacher changes one row's loss, [2, V]."""
    classes = rows.student.shape[-1]
    many = rows.take(np.zeros(classes, int))
    base, matters = subject.observe(many).values, []
    for side in ("student", "teacher"):
        logits = np.float32(getattr(many, side) + 0.02 * np.eye(classes))
        moved = subject.observe(many._replace(**{side: logits})).values
        matters.append(np.abs(moved - base) > 1e-6 * np.abs(base))
    return np.stack(matters)


def _counts(matters: np.ndarray) -> tuple[int, ...]:
    """Returns on how many classes a row's loss depends, by side, where it isn't all of them."""
    counts = {int(count) for count in matters.sum(-1)}
    return tuple(sorted(count for count in counts if 0 < count < matters.shape[-1]))


def _fit_first_classes(observed: Observed, matters: np.ndarray) -> Fit | None:
    """Returns a loss of the first classes, as of a vocabulary that is padded to more."""
    count = int(np.max(np.flatnonzero(np.any(matters, 0)), initial=-1)) + 1
    if not 0 < count < matters.shape[-1] - 1:
        return None

    fit = exact_loss(replace(observed, rows=observed.rows.first_classes(count)))
    return fit and replace(fit, classes=count)


def _at_many_classes(subject: Subject) -> Subject:
    """Compares the fit with values of many classes: a mean over V or a truncation shows there."""
    probe, fit = subject.probe, subject.fit
    if fit is None or probe.classes >= _MANY:
        return subject
    rows = random_rows(_MANY, teachers=3, students=4, seed=31)
    try:
        observed = replace(subject.observe(fit.arguments(rows)), rows=rows)
    except CallError:
        return subject
    if not np.all(np.isfinite(observed.values)):
        evidence = f"{_MANY} classes", "a finite value", "NaN or infinity"
        return subject.adding(finding("nan_on_ordinary_logits", evidence))
    predicted = fit.predict(rows)
    (ratio,), residual = observed.weigh(predicted[None])
    if not fit.extra:
        ratio = observed.values @ predicted / (predicted @ predicted)
    weights = [weight * ratio for _, weight in fit.parts]
    if np.linalg.norm(residual) > 10 * observed.allowed(np.sum(np.abs(weights))):
        if not fit.mistakes:
            fit = mistakes.mistaken_loss(observed, _counts(_class_matters(subject, rows)))
        return replace(subject, fit=fit)
    if not is_near(ratio * _MANY / probe.classes, 1):
        return subject
    names = {"token mean": "mean over V and tokens", "none": "mean over V"}
    name = names.get(subject.reduction, f"{subject.reduction}, over V")
    evidence = f"rows of {probe.classes} and {_MANY} classes", "the same factor", float(ratio)
    mean = finding("mean_over_vocabulary", evidence)
    return subject.adding(mean, by_size=1 / probe.classes, reduction=name)
