"""The audit: calls a loss on designed inputs, names it, and reports its mistakes."""

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxdiv.audit.calls import CallError, name_of
from jaxdiv.audit.conventions import open_probe
from jaxdiv.audit.edges import edge_findings, gradient_findings, law_findings
from jaxdiv.audit.findings import MISTAKE, NOTE, Finding, finding
from jaxdiv.audit.fits import Fit, Observed
from jaxdiv.audit.formulas import Candidate, right
from jaxdiv.audit.identify import identify_loss, sees_difference_alone, sides_apart
from jaxdiv.audit.inputs import random_rows
from jaxdiv.audit.layout import Subject
from jaxdiv.audit.mistakes import other_comparison
from jaxdiv.audit.reduction import examine_mask
from jaxdiv.audit.weights import normalize_weights
from jaxdiv.divergences.loss import Loss, get
from jaxdiv.divergences.registry import ENTRIES

_WIDTH = 110  # of the report
_VAGUE = {"alpha"}  # aliases that stand in names for other things
_CALL = ("the call", "f(student, teacher) with logits [B, L, V]", "another")


@dataclass(frozen=True)
class Audit:
    """The divergence of a loss function, and its mistakes.

    Attributes:
      name: the name of the audited function.
      divergence: text that `jaxdiv.get` takes, or None. Beside a mistake it is the intended loss.
      scale: the loss is this times the reduced `divergence` with its factor of T; None if not
        identified.
      temperature: T of student and teacher (the teacher's, where they differ); None if not
        identified.
      reduction: `none`, `sum`, `token mean`, `sequence mean`, or in words.
      findings: mistakes first.
      called: the framework and the shape of the logits.
    """

    name: str
    divergence: str | None
    scale: float | None
    temperature: float | None
    reduction: str | None
    findings: tuple[Finding, ...]
    called: Mapping[str, str] = field(default_factory=dict)

    @property
    def mistakes(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.severity == MISTAKE)

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.severity == NOTE)

    def __str__(self) -> str:
        def wrap(text, first):
            return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent="    ")

        count = len(self.mistakes)
        facts = {
            "divergence": self.divergence or "not identified",
            "scale": "not known" if self.scale is None else f"{self.scale:.5g}",
            "temperature": "not known" if self.temperature is None else f"{self.temperature:.4g}",
            "reduction": self.reduction or "not known",
            **self.called,
        }
        lines = [f"{self.name}: {count or 'no'} mistake{'s' if count > 1 else ''} found", ""]
        lines += [f"  {name:<12} {value}" for name, value in facts.items()]
        for one in self.findings:
            shown = one.evidence
            lines += ["", *wrap(f"{one.severity.upper()} {one.code}: {one.message}", "")]
            lines += wrap(f"{shown.input}: expected {shown.expected}, got {shown.got}", "    ")
        return "\n".join(lines)


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
    intended = get(expected) if expected is not None else None
    try:
        probe = open_probe(loss_fn, axes)
    except CallError as error:
        evidence = "random logits of every shape", "a value", str(error)
        failure = finding("does_not_run", evidence, error=str(error))
        return Audit(name_of(loss_fn), None, None, None, None, (failure,))
    subject = identify_loss(probe)
    fit, text, scale = subject.fit, None, None
    if fit is None and not any(one.severity == MISTAKE for one in subject.findings):
        evidence = "ordinary rows", "a loss of the registry", "none that fits"
        subject = subject.adding(finding("unidentified", evidence))
    if fit is not None:
        text, scale, notes = normalize_weights(fit, subject.by_size)
        subject = subject.adding(*_formula_findings(fit, text), *notes)
    if np.all(np.isfinite(subject.values(subject.rows))):
        subject = _examine_behaviour(subject)
    if probe.takes("mask") and probe.lead:
        subject = examine_mask(subject)
    elif subject.reduction == "token mean" and len(probe.lead) > 1:
        evidence = "full sequences", "a mask argument", "none"
        subject = subject.adding(finding("sequence_or_token", evidence))
    subject = subject.adding(
        *_against_intention(probe.name, text, intended, fit),
        *(finding(code, _CALL, **details) for code, details in probe.notes),
        *([finding("extra_output", _CALL)] if probe.tuple_output else []),
    )
    unique = {one.code + one.message: one for one in subject.findings}
    return Audit(
        name=probe.name,
        divergence=text,
        scale=None if scale is None else float(scale),
        temperature=None if fit is None else fit.temperatures[0],
        reduction=subject.reduction,
        findings=tuple(sorted(unique.values(), key=lambda one: one.severity != MISTAKE)),
        called={"framework": probe.framework, "logits": str([*probe.lead, probe.classes])},
    )


def _formula_findings(fit: Fit, text: str) -> Iterator[Finding]:
    evidence = "ordinary rows", text, "this mistake in it"
    for code, details in fit.mistakes:
        yield finding(code, evidence, **details)
    if fit.classes:
        yield finding("vocabulary_cut", evidence, count=fit.classes)
    if any(candidate.at_temperature for candidate, _ in fit.parts):
        yield finding("temperature_on_labels", evidence, temperature=fit.temperature)
    if fit.extra:
        yield finding(fit.extra, ("ordinary rows", text, "more than that"), divergence=text)
    elif fit.is_right and [c.name for c, _ in fit.parts] == ["cross_entropy"]:
        evidence = "equal sides", "0 of kl", "the teacher's entropy"
        yield finding("entropy_dropped", evidence, divergence="kl")


def _examine_behaviour(subject: Subject) -> Subject:
    """Adds findings on laws of logits, gradients and edges, where rows have finite values."""
    by_row = subject.axis is None and not subject.coarse and not subject.interacting
    if subject.fit is None and by_row:
        form = other_comparison(subject.observe(subject.rows))
        if form is None and sees_difference_alone(subject):
            form = "a function of the logits' difference"
        if form:
            evidence = "ordinary rows", "a loss of the registry", form
            subject = subject.adding(finding("not_on_menu", evidence, form=form))
        subject = subject.adding(*law_findings(subject, is_known=form is not None))
        if subject.probe.takes("teacher") and sides_apart(subject):
            evidence = "both sides changed, alone and together", "other than the sum", "the sum"
            subject = subject.adding(finding("sides_apart", evidence))
    subject = subject.adding(*gradient_findings(subject))
    return subject if subject.axis is not None else subject.adding(*edge_findings(subject))


def _against_intention(
    name: str, text: str | None, intended: Loss | None, fit: Fit | None
) -> Iterator[Finding]:
    """Yields a finding if it is another loss than `expected`, or than its name says."""
    if intended is not None:
        divergence = text or "no loss of the registry"
        if text is None or not _same(get(text), intended):
            swapped = text is not None and _same(get(text), intended, swapped=True)
            code = "direction" if swapped else "other_divergence"
            evidence = "ordinary rows", intended.text, divergence
            yield finding(code, evidence, divergence=divergence, expected=intended.text)
        return
    said = _loss_in_name(name)
    if text is None or said is None or len(fit.parts) != 1:
        return
    named = fit.parts[0][0].name
    if (said, named) != ("forward_kl", "cross_entropy") and not _same(get(text), get(said)):
        evidence = f"a function called {name}", said, text
        yield finding("name_disagrees", evidence, name=name, divergence=text)


def _same(loss: Loss, other: Loss, swapped: bool = False) -> bool:
    """Returns whether two losses are one up to a factor and a function of the teacher."""

    def of_registry(loss, rows):
        parts = Counter()  # a loss may be a part more than once: its weights add up
        for part in loss.parts:
            parts[Candidate(part.name, tuple(part.all_parameters.items()))] += part.weight
        values = Fit(tuple(parts.items()), (1.0, 1.0), right(parts)).predict(rows)
        return Observed(values, rows)

    rows = random_rows(11)
    mirrored = rows._replace(student=rows.teacher, teacher=rows.student)
    one, two = of_registry(loss, rows), of_registry(other, mirrored if swapped else rows)
    one, two = (x.values if swapped else x.centred for x in (one, two))
    factor = (one @ two) / (two @ two)
    return bool(np.linalg.norm(one - factor * two) < 2e-3 * np.linalg.norm(one))


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
