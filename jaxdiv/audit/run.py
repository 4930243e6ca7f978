"""The audit: calls a loss on designed inputs, names it, and reports its mistakes."""

import re
from collections.abc import Callable, Iterator

import numpy as np

from jaxdiv.audit import masks, mistakes, search
from jaxdiv.audit.calls import CallError, name_of
from jaxdiv.audit.candidates import Candidate, values
from jaxdiv.audit.codes import MISTAKE
from jaxdiv.audit.conventions import open_probe
from jaxdiv.audit.edges import edge_findings, laws
from jaxdiv.audit.fit import centre
from jaxdiv.audit.gradients import gradient_findings
from jaxdiv.audit.identify import Fit
from jaxdiv.audit.inputs import random_rows
from jaxdiv.audit.result import Audit, Finding, finding
from jaxdiv.audit.scale import normalize_weights
from jaxdiv.audit.search import Subject
from jaxdiv.divergences.loss import Loss, get
from jaxdiv.divergences.registry import ENTRIES

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
    intended = get(expected) if expected is not None else None
    try:
        probe = open_probe(loss_fn, axes)
    except CallError as error:
        evidence = "random logits of every shape", "a value", str(error)
        failure = finding("does_not_run", evidence, error=str(error))
        return Audit(name_of(loss_fn), None, None, None, None, (failure,))
    return _report(search.identify_loss(probe), intended)


def _report(subject: Subject, intended: Loss | None) -> Audit:
    """Returns the audit: findings on the formula, then on gradients, edges, masks and calls."""
    probe, fit, reduced = subject.probe, subject.fit, subject.reduced
    text = scale = None
    findings = list(subject.findings)
    if fit is not None:
        text, scale, notes = normalize_weights(fit, reduced.by_size)
        findings += [*_formula_findings(fit, text), *notes]
    findings += _behaviour(subject)
    name = reduced.name
    if probe.takes("mask") and probe.lead:
        masked, notes = masks.under_mask(probe, reduced, subject.layout)
        name, findings = masked or name, findings + notes
    elif name == "token mean" and len(probe.lead) > 1:
        evidence = "full sequences", "a mask argument", "none"
        findings.append(finding("sequence_or_token", evidence))
    findings += [*_against_intention(probe.name, text, intended, fit)]
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
        yield finding(fit.extra, ("ordinary rows", text, "more than that"), divergence=text)
    elif fit.is_right and [c.name for c, _ in fit.parts] == ["cross_entropy"]:
        evidence = "equal sides", "0 of kl", "the teacher's entropy"
        yield finding("entropy_dropped", evidence, divergence="kl")


def _behaviour(subject: Subject) -> Iterator[Finding]:
    """Yields findings on laws of logits, gradients and edges, where rows have finite values."""
    probe, layout, reduced, fit = subject.probe, subject.layout, subject.reduced, subject.fit
    if not np.all(np.isfinite(subject.observe(subject.rows).values)):
        return
    by_row = layout.axis is None and not layout.coarse
    if fit is None and by_row and not layout.interacting:
        form = mistakes.other_comparison(subject.observe(subject.rows), subject.rows)
        if form is None and search.sees_difference_alone(subject):
            form = "a function of the logits' difference"
        if form:
            evidence = "ordinary rows", "a loss of the registry", form
            yield finding("not_on_menu", evidence, form=form)
        yield from laws(probe, reduced, is_known=form is not None)
        if probe.takes("teacher") and search.sides_apart(subject):
            evidence = "both sides changed, alone and together", "other than the sum", "the sum"
            yield finding("sides_apart", evidence)
    flow = list(gradient_findings(probe, subject.rows, reduced, fit, by_row))
    yield from flow
    if layout.axis is None:
        detached = any(one.code in ("wrong_gradient", "no_gradient") for one in flow)
        for one in edge_findings(probe, reduced, fit):
            # Rare classes' gradients tell of a clamp only where the others' are right.
            if not (detached and one.code == "clamped_log"):
                yield one


def _against_intention(
    name: str, text: str | None, intended: Loss | None, fit: Fit | None
) -> Iterator[Finding]:
    """Yields a finding if it is another loss than `expected`, or than its name says."""
    if intended is not None:
        name = text or "no loss of the registry"
        if text is None or not _same(get(text), intended):
            swapped = text is not None and _same(get(text), intended, swapped=True)
            code = "direction" if swapped else "other_divergence"
            evidence = "ordinary rows", intended.text, name
            yield finding(code, evidence, divergence=name, expected=intended.text)
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
        parts = [(p.weight, Candidate(p.name, tuple(p.all_parameters.items()))) for p in loss.parts]
        return sum(weight * values(candidate, rows, (1.0,))[0] for weight, candidate in parts)

    rows = random_rows(11)
    mirrored = rows._replace(student=rows.teacher, teacher=rows.student)
    one, two = of_registry(loss, rows), of_registry(other, mirrored if swapped else rows)
    if not swapped:
        one, two = centre(one, rows.groups), centre(two, rows.groups)
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
