"""Identifies a loss: of the registry as it stands, under a mistake, or neither."""

from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit import gradients, identify, mistakes, positions
from jaxdiv.audit.calls import CallError, Probe
from jaxdiv.audit.fit import Observed, weigh
from jaxdiv.audit.identify import Fit, is_near
from jaxdiv.audit.inputs import ProbeRows, random_rows
from jaxdiv.audit.positions import Structure
from jaxdiv.audit.reduction import Reduction, reduction
from jaxdiv.audit.result import Finding, finding

_MANY = 131  # classes, at which a mean over V, a truncation or padding shows
_ARGUMENTS = {
    "logits": lambda x: x,
    "log-probabilities": lambda x: np.float32(mistakes.log_softmax(x)),
    "probabilities": lambda x: np.float32(mistakes.softmax(x)),
}
_ARGUMENT_CODES = {"probabilities": "softmax_missing", "log-probabilities": "log_softmax_missing"}


@dataclass(frozen=True)
class Subject:
    """A loss under examination, and what is known of it so far."""

    probe: Probe
    rows: ProbeRows
    layout: Structure
    reduced: Reduction
    fit: Fit | None = None
    findings: tuple[Finding, ...] = ()

    def observe(self, rows: ProbeRows) -> Observed:
        return Observed(self.reduced.row_values(self.probe, rows), rows.groups)

    def with_fit(self, fit: Fit | None, *findings: Finding) -> "Subject":
        return replace(self, fit=fit, findings=(*self.findings, *findings))


def identify_loss(probe: Probe) -> Subject:
    """Returns the loss with its divergence, from few classes and from many."""
    rows = random_rows(probe.classes)
    layout = positions.structure(probe)
    reduced = reduction(probe, rows, layout)
    subject = Subject(probe, rows, layout, reduced, None, (*layout.findings, *reduced.findings))
    if layout.axis is not None:
        values = positions.observe_along(probe, layout.axis, rows)
        usable = values is not None and np.all(np.isfinite(values))
        along = Observed(values, rows.groups) if usable else None
        return subject.with_fit(identify.registry_loss(along, rows) if usable else None)
    observed = subject.observe(rows)
    if not np.all(np.isfinite(observed.values)):
        return _identify_despite_nan(subject, observed)
    if layout.coarse:
        return subject.with_fit(identify.close_loss(observed, rows))
    if np.max(np.abs(observed.centred)) < 1e-6 * observed.size:
        return subject
    subject = _at_many_classes(subject.with_fit(_explain(subject, observed)))
    return _batch_weight(subject) if layout.interacting else subject


def _explain(subject: Subject, observed: Observed) -> Fit | None:
    """Returns the loss, or the mistake in one, that explains the values of ordinary rows.

    What is common and cheap to try comes first. All of them must explain the values exactly, so
    that the order decides nothing.
    """
    rows = subject.rows
    fit = identify.exact_loss(observed, rows)
    if fit is not None:
        return fit
    matters = _class_matters(subject, rows)
    count = int(np.max(np.flatnonzero(np.any(matters, 0)), initial=-1)) + 1
    if 0 < count < subject.probe.classes - 1:
        fit = _fit_first_classes(observed, rows, count)
    if fit is None and sees_difference_alone(subject):
        return mistakes.variation_of_logits(observed, rows)
    if fit is None and not sides_apart(subject) and not mistakes.other_comparison(observed, rows):
        fit = _fit_other_arguments(subject)
        fit = fit or mistakes.mistaken_loss(observed, rows, _counts(matters))
    return fit or identify.any_loss(observed, rows)


def sees_difference_alone(subject: Subject) -> bool:
    """Returns whether one random array added to the logits of both sides changes nothing."""
    rows = subject.rows
    away = np.random.default_rng(41).normal(size=rows.student.shape).astype(np.float32)
    moved = rows._replace(student=rows.student + away, teacher=rows.teacher + away)
    base = subject.observe(rows)
    return base.is_nothing(subject.observe(moved).values - base.values)


def _identify_despite_nan(subject: Subject, observed: Observed) -> Subject:
    """Identifies the student's part by gradients, where a term of the teacher alone may be NaN."""
    fit = _fit_other_arguments(subject)
    if fit is not None:
        return subject.with_fit(fit)
    got = float(observed.values[~np.isfinite(observed.values)][0])
    evidence = "logits of size 1.5", "a finite value", got
    subject = subject.with_fit(None, finding("nan_on_ordinary_logits", evidence))
    if subject.layout.interacting or subject.layout.coarse:
        return subject
    values = gradients.integrate(subject.probe, subject.rows, subject.reduced)
    if values is None or not np.all(np.isfinite(values)):
        return subject
    integral = Observed(values, observed.groups)
    return subject.with_fit(mistakes.student_mistake(integral, subject.rows))


def _fit_other_arguments(subject: Subject) -> Fit | None:
    """Returns a loss that is right once probabilities or log-probabilities are handed to it."""
    kinds = [(s, t) for s in _ARGUMENTS for t in _ARGUMENTS if (s, t) != ("logits", "logits")]
    for of_student, of_teacher in sorted(kinds, key=lambda pair: pair.count("logits") == 0):
        student, teacher = _ARGUMENTS[of_student], _ARGUMENTS[of_teacher]

        def changed(rows, student=student, teacher=teacher):
            return rows._replace(student=student(rows.student), teacher=teacher(rows.teacher))

        observed = subject.observe(changed(subject.rows))
        if not np.all(np.isfinite(observed.values)) or np.ptp(observed.centred) < 1e-6:
            continue
        fit = identify.exact_loss(observed, subject.rows)
        if fit is not None:
            kinds = {"student": of_student, "teacher": of_teacher}
            wrong = [(side, kind) for side, kind in kinds.items() if kind != "logits"]
            wrong_arguments = tuple((_ARGUMENT_CODES[kind], {"side": side}) for side, kind in wrong)
            return replace(fit, mistakes=wrong_arguments, arguments=changed)
    return None


def sides_apart(subject: Subject) -> bool:
    """Returns whether the value is a function of the student and one of the teacher, added."""
    few = subject.rows.take(slice(None, None, 5))
    values = {}
    for s in (0, 1):
        for t in (0, 1):
            moved = few._replace(
                student=np.roll(few.student, s, 0),
                teacher=np.roll(few.teacher, t, 0),
                labels=np.roll(few.labels, t),
            )
            values[s, t] = subject.observe(moved).values
    together = values[0, 0] - values[0, 1] - values[1, 0] + values[1, 1]
    return bool(np.max(np.abs(together)) < 1e-5 * np.max(np.abs(values[0, 0])))


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


def _fit_first_classes(observed: Observed, rows: ProbeRows, count: int) -> Fit | None:
    """Returns a loss of the first classes, as of a vocabulary that is padded to more."""

    def cut(rows):
        return rows._replace(student=rows.student[:, :count], teacher=rows.teacher[:, :count])

    fit = identify.exact_loss(observed, cut(rows))
    return fit and replace(fit, predict=lambda rows: fit.predict(cut(rows)), classes=count)


def _at_many_classes(subject: Subject) -> Subject:
    """Compares the fit with values of many classes: a mean over V or a truncation shows there."""
    probe, fit = subject.probe, subject.fit
    if fit is None or probe.classes >= _MANY:
        return subject
    rows = random_rows(_MANY, teachers=3, students=4, seed=31)
    try:
        observed = subject.observe(fit.arguments(rows))
    except CallError:
        return subject
    if not np.all(np.isfinite(observed.values)):
        evidence = f"{_MANY} classes", "a finite value", "NaN or infinity"
        return subject.with_fit(fit, finding("nan_on_ordinary_logits", evidence))
    predicted = fit.predict(rows)
    (ratio,), residual = weigh(predicted[None], observed)
    if not fit.extra:
        ratio = observed.values @ predicted / (predicted @ predicted)
    if residual > 10 * observed.allowed([weight * ratio for _, weight in fit.parts]):
        if fit.mistakes:
            return subject
        counts = _counts(_class_matters(subject, rows))
        return subject.with_fit(mistakes.mistaken_loss(observed, rows, counts))
    if not is_near(ratio * _MANY / probe.classes, 1):
        return subject
    names = {"token mean": "mean over V and tokens", "none": "mean over V"}
    name = names.get(subject.reduced.name, f"{subject.reduced.name}, over V")
    reduced = replace(subject.reduced, by_size=1 / probe.classes, name=name)
    evidence = f"rows of {probe.classes} and {_MANY} classes", "the same factor", float(ratio)
    return replace(subject, reduced=reduced).with_fit(
        fit, finding("mean_over_vocabulary", evidence)
    )


def _batch_weight(subject: Subject) -> Subject:
    """Replaces findings on an adaptive weight of the whole batch by a note: papers may have it."""
    fit = subject.fit
    if fit is None or not fit.is_right or not any("λ" in c.entry.formula for c, _ in fit.parts):
        return subject
    evidence = "two rows changed, alone and together", "the changes add up", "they don't"
    rest = [f for f in subject.findings if f.code not in ("batch_dependence", "rows_interact")]
    return replace(subject, findings=(*rest, finding("batch_weight", evidence)))
