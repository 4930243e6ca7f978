"""The audit: probe a loss, name it, and tell what is wrong with it."""

from collections.abc import Callable

import numpy as np

from jaxdiv.audit import (
    edges,
    gradients,
    masks,
    naming,
    recognise,
    reduction,
    scales,
    structure,
    vocabulary,
)
from jaxdiv.audit.calling import open_probe
from jaxdiv.audit.codes import MISTAKE
from jaxdiv.audit.identify import is_nothing
from jaxdiv.audit.inputs import random_rows
from jaxdiv.audit.probe import CallError
from jaxdiv.audit.recognise import Recognised, Subject
from jaxdiv.audit.result import Audit, Finding, finding
from jaxdiv.divergences.loss import get


def audit(loss_fn: Callable, *, expected: str | None = None, axes: str | None = None) -> Audit:
    """What a loss is, and what is wrong with it.

    Args:
      loss_fn: a function of student and teacher logits, in JAX or NumPy; wrap PyTorch by
        `torch_loss`. It may take `labels` and a `mask`, by those or similar names, or labels in the
        teacher's place.
      expected: what its author means it to be, as `jaxdiv.get` takes it; without it, a divergence
        of the menu is right whichever it is.
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
        return _unrunnable(loss_fn, error)
    return _examined(probe, meant)


def _unrunnable(loss_fn, error):
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    found = finding(
        "does_not_run", ("random logits of every shape", "a value", str(error)), error=str(error)
    )
    return Audit(name, None, None, None, None, (found,))


def _examined(probe, meant):
    """Each stage tells its findings; which loss it is comes first, as what is right depends on
    it."""
    rows = random_rows(probe.classes)
    seen = structure.examine(probe)
    subject = Subject(probe, rows, seen, reduction.examine(probe, rows, seen))
    known = recognise.examine(subject)
    scaled = _scaled(known)
    subject, fit = known.subject, known.fit
    name, under_mask = _reduced(subject)
    findings = [
        *known.findings,
        *scaled.findings,
        *(naming.of_fit(fit, scaled) if fit else ()),
        *_behaviour(known),
        *under_mask,
        *vocabulary.examine(probe, fit),
        *naming.examine(probe, scaled.text, meant, fit),
        *(finding(code, _HOW, **details) for code, details in _how_called(probe)),
    ]
    if fit is None and not any(found.severity == MISTAKE for found in known.findings):
        findings.append(
            finding("unidentified", ("ordinary rows", "a loss of the menu", "none that fits"))
        )
    return Audit(
        name=probe.name,
        divergence=scaled.text,
        scale=None if scaled.text is None else float(scaled.scale),
        temperature=None if fit is None else float(fit.temperature),
        reduction=name,
        findings=_ordered(findings),
        called={"framework": probe.framework, "logits": str([*probe.lead, probe.classes])},
    )


def _scaled(known: Recognised) -> scales.Scaled:
    if known.fit is None:
        return scales.Scaled(None, np.nan)
    return scales.explain(known.fit, known.subject.reduced.by_size)


def _reduced(subject: Subject) -> tuple[str | None, list[Finding]]:
    """The reduction's name, and findings of the mask."""
    name = subject.reduced.name
    if subject.probe.takes_mask and subject.probe.lead:
        under_mask, found = masks.examine(subject.probe, subject.reduced, subject.seen)
        return under_mask or name, found
    if name == "token mean" and len(subject.probe.lead) > 1:
        return name, [finding("sequence_or_token", ("full sequences", "a mask argument", "none"))]
    return name, []


def _behaviour(known: Recognised) -> list[Finding]:
    """Gradients, invariances and edges."""
    subject, fit = known.subject, known.fit
    probe, seen, reduced, rows = subject.probe, subject.seen, subject.reduced, subject.rows
    observed = subject.observe(rows)
    if not np.all(np.isfinite(observed.values)):
        return []
    found, added = [], False
    if fit is not None and fit.clean and seen.axis is None:
        extra = observed.values - fit.predict(rows)
        added = not is_nothing(extra, observed)
        found += naming.of_offset(fit, extra, observed, rows) if added else []
    if (fit is None or fit.others) and subject.by_row:
        found += vocabulary.axioms(subject.observe, rows) if fit is None else []
        found += edges.stationary(probe, reduced) if probe.takes_teacher else []
    found += gradients.examine(
        probe, rows, reduced, fit, by_row=seen.axis is None and not seen.coarse
    )
    if seen.axis is None:
        told = edges.examine(probe, reduced, fit, added)
        # Rare classes' gradients tell of a clamp only where the others' are right.
        detached = any(
            one.code in ("wrong_gradient", "no_gradient") for one in (*known.findings, *found)
        )
        found += [one for one in told if not (detached and one.code == "clamped_log")]
    return found


def _ordered(findings):
    """Each once, mistakes first."""
    unique = list({one.code + one.message: one for one in reversed(findings)}.values())[::-1]
    return tuple(sorted(unique, key=lambda one: one.severity != MISTAKE))


_HOW = ("the call", "f(student, teacher) with logits [B, L, V]", "another")


def _how_called(probe):
    yield from probe.notes
    if probe.tuple_output:
        yield "extra_output", {}
