"""The audit: calls a loss on designed inputs, names it, and reports its mistakes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit import gradients, identify, masks, mistakes, positions
from jaxdiv.audit.calls import CallError, Probe, name_of
from jaxdiv.audit.candidates import Candidate, values
from jaxdiv.audit.codes import MISTAKE
from jaxdiv.audit.conventions import open_probe
from jaxdiv.audit.edges import edge_findings, laws
from jaxdiv.audit.fit import Observed, centre, weigh
from jaxdiv.audit.identify import Fit, is_near
from jaxdiv.audit.inputs import Rows, random_rows
from jaxdiv.audit.positions import Structure
from jaxdiv.audit.reduction import Reduction, reduction
from jaxdiv.audit.result import Audit, Finding, finding
from jaxdiv.audit.scale import scaled
from jaxdiv.divergences.loss import get
from jaxdiv.divergences.registry import ENTRIES

_MANY = 131  # classes, at which a mean over V, a truncation or padding shows
_ARGUMENTS = {
    "logits": lambda x: x,
    "log-probabilities": lambda x: np.float32(mistakes.log_softmax(x)),
    "probabilities": lambda x: np.float32(mistakes.softmax(x)),
}
_ARGUMENT_CODES = {"probabilities": "softmax_missing", "log-probabilities": "log_softmax_missing"}
_VAGUE = {"alpha"}  # aliases that stand in names for other things


def audit(loss_fn: Callable, *, expected: str | None = None, axes: str | None = None) -> Audit:
    """Returns which divergence a loss is, and what is wrong with it.

    Args:
      loss_fn: a function of student and teacher logits, in JAX or NumPy; wrap PyTorch by
        `torch_loss`. It may take `labels` and a `mask`, by those or similar names, or labels in the
        teacher's place.
      expected: the loss that its author means, as `jaxdiv.get` takes it; without it every
        divergence of the registry is right.
      axes: `BLV`, `NV` or `V` if it is only ever called so; without it [B, L, V] comes first.

    Returns:
      An `Audit`; printed, it is a report.

    Raises:
      ValueError: if `loss_fn` can't be called, `expected` is no loss or `axes` no such shape.
    """
    if not callable(getattr(loss_fn, "function", loss_fn)):
        raise ValueError(f"`loss_fn` must be a function, got {type(loss_fn).__name__}.")
    if axes not in (None, "BLV", "NV", "V"):
        raise ValueError(f"`axes` must be BLV, NV or V, got {axes!r}.")
    if not isinstance(expected, str | None):
        raise ValueError(f"`expected` must be text such as kl, got {expected!r}.")
    meant = get(expected) if expected is not None else None
    try:
        probe = open_probe(loss_fn, axes)
    except CallError as error:
        evidence = "random logits of every shape", "a value", str(error)
        failure = finding("does_not_run", evidence, error=str(error))
        return Audit(name_of(loss_fn), None, None, None, None, (failure,))
    return _report(_identified(probe), meant)


@dataclass(frozen=True)
class Subject:
    """A loss under examination, and what is known of it so far."""

    probe: Probe
    rows: Rows
    seen: Structure
    reduced: Reduction
    fit: Fit | None = None
    findings: tuple[Finding, ...] = ()

    def observe(self, rows: Rows) -> Observed:
        return Observed(self.reduced.row_values(self.probe, rows), rows.groups)

    def found(self, fit: Fit | None, *findings: Finding) -> "Subject":
        return replace(self, fit=fit, findings=(*self.findings, *findings))


def _identified(probe: Probe) -> Subject:
    """Returns the loss with its divergence, from few classes and from many."""
    rows = random_rows(probe.classes)
    seen = positions.structure(probe)
    reduced = reduction(probe, rows, seen)
    subject = Subject(probe, rows, seen, reduced, None, (*seen.findings, *reduced.findings))
    if seen.axis is not None:
        values = positions.observe_along(probe, seen.axis, rows)
        usable = values is not None and np.all(np.isfinite(values))
        return subject.found(
            _registry_loss(Observed(values, rows.groups), rows) if usable else None
        )
    observed = subject.observe(rows)
    if not np.all(np.isfinite(observed.values)):
        return _identified_despite_nan(subject, observed)
    if seen.coarse:
        return subject.found(identify.close_loss(observed, rows))
    if np.max(np.abs(observed.centred)) < 1e-6 * observed.size:
        return subject
    subject = _at_many_classes(subject.found(_explained(subject, observed)))
    return _batch_weight(subject) if seen.interacting else subject


def _registry_loss(observed, rows) -> Fit | None:
    return identify.common_loss(observed, rows) or identify.any_loss(observed, rows)


def _explained(subject: Subject, observed: Observed) -> Fit | None:
    """Returns the loss, or the mistake in one, that explains the values of ordinary rows.

    What is common and cheap to try comes first. All of them must explain the values exactly, so
    that the order decides nothing.
    """
    rows, count = subject.rows, _existing_classes(subject)
    fit = identify.common_loss(observed, rows)
    if fit is None and count < subject.probe.classes - 1:
        return _of_existing(observed, rows, count)
    if fit is None and _sees_difference_alone(subject):
        return mistakes.variation_of_logits(observed, rows)
    if fit is None and not _sides_apart(subject) and not mistakes.other_comparison(observed, rows):
        fit = _with_other_arguments(subject)
        fit = fit or mistakes.mistaken_loss(observed, rows, _classes_that_count(subject, rows))
    return fit or identify.any_loss(observed, rows)


def _sees_difference_alone(subject: Subject) -> bool:
    """Returns whether one random array added to the logits of both sides changes nothing."""
    rows = subject.rows
    away = np.random.default_rng(41).normal(size=rows.student.shape).astype(np.float32)
    moved = rows._replace(student=rows.student + away, teacher=rows.teacher + away)
    base = subject.observe(rows)
    return base.is_nothing(subject.observe(moved).values - base.values)


def _identified_despite_nan(subject: Subject, observed: Observed) -> Subject:
    """A term of the teacher alone may be NaN: gradients still show the student's part."""
    fit = _with_other_arguments(subject)
    if fit is not None:
        return subject.found(fit)
    got = float(observed.values[~np.isfinite(observed.values)][0])
    evidence = "logits of size 1.5", "a finite value", got
    subject = subject.found(None, finding("nan_on_ordinary_logits", evidence))
    if subject.seen.interacting or subject.seen.coarse:
        return subject
    values = gradients.integrated(subject.probe, subject.rows, subject.reduced)
    if values is None or not np.all(np.isfinite(values)):
        return subject
    seen = Observed(values, observed.groups)
    return subject.found(mistakes.student_mistake(seen, subject.rows))


def _with_other_arguments(subject: Subject) -> Fit | None:
    """Returns a loss that is right once probabilities or log-probabilities are handed to it."""
    kinds = [(s, t) for s in _ARGUMENTS for t in _ARGUMENTS if (s, t) != ("logits", "logits")]
    for of_student, of_teacher in sorted(kinds, key=lambda pair: pair.count("logits") == 0):
        student, teacher = _ARGUMENTS[of_student], _ARGUMENTS[of_teacher]

        def changed(rows, student=student, teacher=teacher):
            return rows._replace(student=student(rows.student), teacher=teacher(rows.teacher))

        observed = subject.observe(changed(subject.rows))
        if not np.all(np.isfinite(observed.values)) or np.ptp(observed.centred) < 1e-6:
            continue
        fit = identify.common_loss(observed, subject.rows)
        if fit is not None:
            kinds = {"student": of_student, "teacher": of_teacher}
            wrong = [(side, kind) for side, kind in kinds.items() if kind != "logits"]
            found = tuple((_ARGUMENT_CODES[kind], {"side": side}) for side, kind in wrong)
            return replace(fit, mistakes=found, arguments=changed)
    return None


def _sides_apart(subject: Subject) -> bool:
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


def _class_matters(subject: Subject, rows: Rows) -> np.ndarray:
    """Returns whether each class's logit of student and teacher changes one row's loss, [2, V]."""
    row, classes = rows.take(slice(0, 1)), rows.student.shape[-1]
    many = Rows(*(np.repeat(part, classes, 0) for part in row))
    base = subject.observe(row).values
    matters = []
    for side in ("student", "teacher"):
        logits = np.float32(getattr(many, side) + 0.02 * np.eye(classes))
        moved = subject.observe(many._replace(**{side: logits})).values
        matters.append(np.abs(moved - base) > 1e-6 * np.abs(base))
    return np.stack(matters)


def _classes_that_count(subject: Subject, rows: Rows) -> tuple[int, ...]:
    """Returns on how many classes a row's loss depends, where it isn't all of them."""
    counts = _class_matters(subject, rows).sum(-1)
    return tuple(sorted({int(count) for count in counts if 0 < count < rows.student.shape[-1]}))


def _existing_classes(subject: Subject) -> int:
    """Returns how many classes come before those of which neither side's logits count."""
    matters = np.any(_class_matters(subject, subject.rows), 0)
    return int(np.flatnonzero(matters)[-1]) + 1 if np.any(matters) else len(matters)


def _of_existing(observed: Observed, rows: Rows, count: int) -> Fit | None:
    """Returns a loss of the first classes, as of a vocabulary that is padded to more."""

    def cut(rows):
        return rows._replace(student=rows.student[:, :count], teacher=rows.teacher[:, :count])

    fit = identify.common_loss(observed, cut(rows))
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
        return subject.found(fit, finding("nan_on_ordinary_logits", evidence))
    predicted = fit.predict(rows)
    (ratio,), residual = weigh(predicted[None], observed)
    if not fit.extra:
        ratio = observed.values @ predicted / (predicted @ predicted)
    if residual > 10 * observed.allowed([weight * ratio for _, weight in fit.parts]):
        if fit.mistakes:
            return subject
        counts = _classes_that_count(subject, rows)
        return subject.found(mistakes.mistaken_loss(observed, rows, counts))
    if not is_near(ratio * _MANY / probe.classes, 1):
        return subject
    names = {"token mean": "mean over V and tokens", "none": "mean over V"}
    name = names.get(subject.reduced.name, f"{subject.reduced.name}, over V")
    reduced = replace(subject.reduced, by_size=1 / probe.classes, name=name)
    evidence = f"rows of {probe.classes} and {_MANY} classes", "the same factor", float(ratio)
    return replace(subject, reduced=reduced).found(fit, finding("mean_over_vocabulary", evidence))


def _batch_weight(subject: Subject) -> Subject:
    """An adaptive weight that is taken over the batch, as its paper may have it, is no mistake."""
    fit = subject.fit
    if fit is None or not fit.is_right or not any("λ" in c.entry.formula for c, _ in fit.parts):
        return subject
    evidence = "two rows changed, alone and together", "the changes add up", "they don't"
    rest = [f for f in subject.findings if f.code not in ("batch_dependence", "rows_interact")]
    return replace(subject, findings=(*rest, finding("batch_weight", evidence)))


def _report(subject: Subject, meant) -> Audit:
    """Returns the audit: findings on the formula, then on gradients, edges, masks and calls."""
    probe, fit, reduced = subject.probe, subject.fit, subject.reduced
    text = scale = None
    findings = list(subject.findings)
    if fit is not None:
        text, scale, notes = scaled(fit, reduced.by_size)
        findings += [*_formula_findings(fit, text), *notes]
    findings += _behaviour(subject)
    name, notes = _under_mask(subject)
    findings += [*notes, *_against_intention(probe.name, text, meant, fit)]
    findings += [finding(code, _CALL, **details) for code, details in probe.notes]
    if probe.tuple_output:
        findings.append(finding("extra_output", _CALL))
    if fit is None and not any(one.severity == MISTAKE for one in subject.findings):
        evidence = "ordinary rows", "a loss of the registry", "none that fits"
        findings.append(finding("unidentified", evidence))
    unique = {one.code + one.message: one for one in findings}
    return Audit(
        name=probe.name,
        divergence=text,
        scale=None if scale is None else float(scale),
        temperature=None if fit is None else float(fit.temperatures[0]),
        reduction=name,
        findings=tuple(sorted(unique.values(), key=lambda one: one.severity != MISTAKE)),
        called={"framework": probe.framework, "logits": str([*probe.lead, probe.classes])},
    )


_CALL = ("the call", "f(student, teacher) with logits [B, L, V]", "another")


def _formula_findings(fit: Fit, text: str) -> Iterator[Finding]:
    evidence = "ordinary rows", text, "this mistake in it"
    for code, details in fit.mistakes:
        yield finding(code, evidence, **details)
    if fit.classes:
        yield finding("vocabulary_cut", evidence, count=fit.classes)
    if any(candidate.at_temperature for candidate, _ in fit.parts):
        yield finding("temperature_on_labels", evidence, temperature=fit.temperature)
    if fit.extra:
        yield finding(fit.extra, ("ordinary rows", text, "more than that"), found=text)
    elif fit.is_right and [c.name for c, _ in fit.parts] == ["cross_entropy"]:
        evidence = "equal sides", "0 of kl", "the teacher's entropy"
        yield finding("entropy_dropped", evidence, found="kl")


def _behaviour(subject: Subject) -> Iterator[Finding]:
    """Yields findings on laws of logits, gradients and edges, where rows have finite values."""
    probe, seen, reduced, fit = subject.probe, subject.seen, subject.reduced, subject.fit
    if not np.all(np.isfinite(subject.observe(subject.rows).values)):
        return
    by_row = seen.axis is None and not seen.coarse
    if fit is None and by_row and not seen.interacting:
        form = mistakes.other_comparison(subject.observe(subject.rows), subject.rows)
        if form is None and _sees_difference_alone(subject):
            form = "a function of the logits' difference"
        if form:
            evidence = "ordinary rows", "a loss of the registry", form
            yield finding("not_on_menu", evidence, form=form)
        yield from laws(probe, reduced, is_known=form is not None)
        if probe.takes("teacher") and _sides_apart(subject):
            evidence = "both sides changed, alone and together", "other than the sum", "the sum"
            yield finding("sides_apart", evidence)
    found = list(gradients.gradient_findings(probe, subject.rows, reduced, fit, by_row))
    yield from found
    if seen.axis is None:
        detached = any(one.code in ("wrong_gradient", "no_gradient") for one in found)
        for one in edge_findings(probe, reduced, fit):
            # Rare classes' gradients tell of a clamp only where the others' are right.
            if not (detached and one.code == "clamped_log"):
                yield one


def _under_mask(subject: Subject) -> tuple[str | None, list[Finding]]:
    """Returns the reduction's name and findings of the mask."""
    probe, reduced = subject.probe, subject.reduced
    if probe.takes("mask") and probe.lead:
        name, findings = masks.under_mask(probe, reduced, subject.seen)
        return name or reduced.name, findings
    if reduced.name == "token mean" and len(probe.lead) > 1:
        evidence = "full sequences", "a mask argument", "none"
        return reduced.name, [finding("sequence_or_token", evidence)]
    return reduced.name, []


def _against_intention(name: str, text: str | None, meant, fit: Fit | None) -> Iterator[Finding]:
    """Yields a finding if it is another loss than `expected`, or than its name says."""
    if meant is not None:
        found = text or "no loss of the registry"
        if text is None or not _same(get(text), meant):
            swapped = text is not None and _same(get(text), meant, swapped=True)
            code = "direction" if swapped else "other_divergence"
            yield finding(
                code, ("ordinary rows", meant.text, found), found=found, expected=meant.text
            )
        return
    said = _loss_in_name(name)
    if text is None or said is None or len(fit.parts) != 1:
        return
    named = fit.parts[0][0].name
    if (said, named) != ("forward_kl", "cross_entropy") and not _same(get(text), get(said)):
        evidence = f"a function called {name}", said, text
        yield finding("name_disagrees", evidence, name=name, found=text)


def _same(loss, other, swapped: bool = False) -> bool:
    """Returns whether two losses are one up to a factor and a function of the teacher."""
    rows = random_rows(11)
    mirrored = rows._replace(student=rows.teacher, teacher=rows.student)
    one, two = _values(loss, rows), _values(other, mirrored if swapped else rows)
    if not swapped:
        one, two = centre(one, rows.groups), centre(two, rows.groups)
    factor = (one @ two) / (two @ two)
    return bool(np.linalg.norm(one - factor * two) < 2e-3 * np.linalg.norm(one))


def _values(loss, rows):
    return sum(
        part.weight
        * values(Candidate(part.name, tuple(part.all_parameters.items())), rows, (1,))[0]
        for part in loss.parts
    )


def _loss_in_name(name: str) -> str | None:
    """Returns the registry's loss that a function's name plainly says, by the longest in it."""
    words = f"_{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()}_"
    full = {alias: key for key, entry in ENTRIES.items() for alias in (key, *entry.aliases)}
    inside = [alias for alias in full if alias not in _VAGUE and f"_{alias}_" in words]
    if not inside:
        return None
    longest = max(inside, key=len)
    others = {full[alias] for alias in inside if alias not in longest}
    return None if others or ("reverse" in words and "reverse" not in longest) else full[longest]
