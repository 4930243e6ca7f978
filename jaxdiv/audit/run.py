"""The audit: probe a loss, name it, and tell what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jaxdiv.audit import edges, gradients, masks, mistaken, naming, reduction, scales, structure, vocabulary
from jaxdiv.audit.calling import open_probe
from jaxdiv.audit.codes import MISTAKE
from jaxdiv.audit.fits import Observed
from jaxdiv.audit.identify import Fit, identify, is_nothing
from jaxdiv.audit.inputs import Rows, random_rows
from jaxdiv.audit.probe import CallError, Probe
from jaxdiv.audit.reduction import row_values
from jaxdiv.audit.result import Audit, Finding, finding
from jaxdiv.divergences.loss import get


def audit(loss_fn: Callable, *, expected: str | None = None, axes: str | None = None) -> Audit:
    """What a loss is, and what is wrong with it.

    Args:
      loss_fn: a function of student and teacher logits, in JAX or NumPy; wrap PyTorch by `torch_loss`. It may take
        `labels` and a `mask`, by those or similar names, or labels in the teacher's place.
      expected: what its author means it to be, as `jaxdiv.get` takes it; without it, a divergence of the menu is
        right whichever it is.
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
    return _Examination(probe, meant).result()


def _unrunnable(loss_fn, error):
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    found = finding("does_not_run", ("random logits of every shape", "a value", str(error)), error=str(error))
    return Audit(name, None, None, None, None, (found,))


@dataclass
class _Examination:
    """One loss under examination: what is known so far."""

    probe: Probe
    meant: object
    findings: list[Finding] = field(default_factory=list)

    def result(self) -> Audit:
        probe = self.probe
        seen = structure.examine(probe)
        rows = random_rows(probe.classes)
        self.findings += seen.findings
        self.reduced = reduction.examine(probe, rows, seen)
        self.findings += self.reduced.findings
        fit = self.identified(rows, seen)
        if fit is not None and not fit.outer and not fit.loose and seen.axis is None:
            fit = self.checked_wide(fit)
        self.soften(fit, seen)
        scaled = self.scaled(fit, rows)
        self.examine_edges(fit, rows, seen)
        name = self.reduced.name
        if probe.takes_mask and probe.lead:
            under_mask, found = masks.examine(probe, self.reduced)
            self.findings += found
            name = under_mask or name
        elif name == "token mean" and len(probe.lead) > 1:
            told = ("full sequences", "a mask argument", "none")
            self.findings.append(finding("sequence_or_token", told))
        self.findings += vocabulary.examine(probe, fit)
        self.findings += naming.examine(probe, scaled.text, self.meant, fit)
        self.findings += [finding(code, _HOW, **details) for code, details in _how_called(probe)]
        return self.told(fit, scaled, name)

    def observe(self, rows: Rows) -> Observed:
        return Observed(row_values(self.probe, rows, self.reduced), rows.groups)

    def identified(self, rows: Rows, seen) -> Fit | None:
        """The fit, with findings of what it lacks."""
        if seen.axis is not None:
            return self.along(seen.axis)
        observed = self.observe(rows)
        if seen.coarse:
            return mistaken.explain_loosely(observed, rows)
        finite = np.all(np.isfinite(observed.values))
        if finite and np.max(np.abs(observed.centred)) < 1e-6 * (np.max(np.abs(observed.values)) + 1e-6):
            return None
        fit = identify(observed, rows) if finite else None
        if fit is None or naming.is_odd(fit, observed, rows):
            explained = mistaken.explain(self.observe, rows, lambda: self.counting(rows))
            if fit is None or (explained is not None and not naming.is_odd(explained, observed, rows)):
                fit = explained
        if fit is None and not finite:
            got = observed.values[~np.isfinite(observed.values)][0]
            self.findings.append(
                finding("nan_on_ordinary_logits", ("logits of size 1.5", "a finite value", float(got)))
            )
            return None
        return fit or mistaken.explain_outer(observed, rows)

    def counting(self, rows: Rows) -> tuple[int, ...]:
        """Sizes of a top-k truncation that are worth trying: none if every class of both sides matters."""
        return vocabulary.counting(self.observe, rows)

    def along(self, axis: int) -> Fit | None:
        """The loss with classes along an axis of positions, over which the softmax runs."""

        def observe(rows):
            values = structure.observe_along(self.probe, axis, rows.student, rows.teacher, rows.labels)
            return None if values is None else Observed(values, rows.groups)

        rows = random_rows(self.probe.classes)
        observed = observe(rows)
        if observed is None or not np.all(np.isfinite(observed.values)) or np.allclose(observed.centred, 0):
            return None
        return identify(observed, rows)

    def checked_wide(self, fit: Fit) -> Fit:
        """The same loss at other vocabulary sizes: a mean over V, a truncation or padding shows there."""
        found, reduced, better = vocabulary.compare_sizes(self.probe, self.reduced, fit)
        self.findings += found
        self.reduced = reduced
        return better

    def scaled(self, fit: Fit | None, rows: Rows) -> scales.Scaled:
        if fit is None:
            if not any(found.severity == MISTAKE for found in self.findings):
                self.findings.append(finding("unidentified", ("ordinary rows", "a loss of the menu", "none that fits")))
            return scales.Scaled(None, np.nan)
        scaled = scales.explain(fit, self.reduced.by_size)
        self.findings += scaled.findings
        self.findings += naming.of_fit(fit, scaled)
        return scaled

    def soften(self, fit: Fit | None, seen) -> None:
        """A weight λ of the menu that is taken over the batch, as its paper may have it, is no mistake."""
        if fit is None or not (fit.clean and seen.interacting):
            return
        if any("λ" in candidate.entry.formula for candidate, _ in fit.parts):
            told = ("two rows changed, alone and together", "the changes add up", "they don't")
            self.findings = [f for f in self.findings if f.code not in ("batch_dependence", "rows_interact")]
            self.findings.append(finding("batch_weight", told))

    def examine_edges(self, fit: Fit | None, rows: Rows, seen) -> None:
        """Gradients, invariances and edges."""
        probe = self.probe
        observed = self.observe(rows)
        if not np.all(np.isfinite(observed.values)):
            return
        added = False
        if fit is not None and fit.clean and seen.axis is None:
            extra = observed.values - fit.predict(rows)
            added = not is_nothing(extra, observed)
            self.findings += naming.of_offset(fit, extra, observed, rows) if added else []
        if fit is None and not seen.interacting and not seen.coarse and seen.axis is None:
            self.findings += vocabulary.axioms(probe, self.observe, rows)
            self.findings += edges.stationary(probe, self.reduced) if probe.takes_teacher else []
        self.findings += gradients.examine(probe, rows, self.reduced, fit, by_row=seen.axis is None and not seen.coarse)
        if seen.axis is None:
            detached = any(found.code in ("wrong_gradient", "no_gradient") for found in self.findings)
            told = edges.examine(probe, self.reduced, fit, added)
            # Rare classes' gradients tell of a clamp only where the others' are right.
            self.findings += [found for found in told if not (detached and found.code == "clamped_log")]

    def told(self, fit: Fit | None, scaled: scales.Scaled, name: str | None) -> Audit:
        probe = self.probe
        order = {id(found): i for i, found in enumerate(self.findings)}
        unique = {found.code + found.message: found for found in reversed(self.findings)}.values()
        findings = sorted(unique, key=lambda found: (found.severity != MISTAKE, order[id(found)]))
        called = {"framework": probe.framework, "logits": str([*probe.lead, probe.classes])}
        return Audit(
            name=probe.name,
            divergence=scaled.text,
            scale=None if fit is None or scaled.text is None else float(scaled.scale),
            temperature=None if fit is None else float(fit.temperature),
            reduction=name,
            findings=tuple(findings),
            called=called,
        )


_HOW = ("the call", "f(student, teacher) with logits [B, L, V]", "another")


def _how_called(probe):
    yield from probe.notes
    if probe.tuple_output:
        yield "extra_output", {}
