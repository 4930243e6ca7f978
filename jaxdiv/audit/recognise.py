"""Which loss it is: of the menu as it stands, under a mistake, or neither."""

from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit import gradients, mistaken, naming, structure, vocabulary
from jaxdiv.audit.fits import Observed
from jaxdiv.audit.identify import Fit, identify
from jaxdiv.audit.inputs import Rows
from jaxdiv.audit.probe import Probe
from jaxdiv.audit.reduction import Reduction, row_values
from jaxdiv.audit.result import Finding, finding
from jaxdiv.audit.structure import Structure


@dataclass(frozen=True)
class Subject:
    """A loss under examination: how it is called, ordinary rows, and what was seen of its positions
    and reduction."""

    probe: Probe
    rows: Rows
    seen: Structure
    reduced: Reduction

    @property
    def by_row(self) -> bool:
        """Whether each row's loss can be seen apart from the others', to all its digits."""
        return self.seen.axis is None and not self.seen.interacting and not self.seen.coarse

    def observe(self, rows: Rows) -> Observed:
        return Observed(row_values(self.probe, rows, self.reduced), rows.groups)


@dataclass(frozen=True)
class Recognised:
    """What a loss is, None if that isn't known, and findings so far."""

    subject: Subject
    fit: Fit | None
    findings: tuple[Finding, ...]


def examine(subject: Subject) -> Recognised:
    fit, found = _identified(subject)
    found = [*subject.seen.findings, *subject.reduced.findings, *found]
    if fit is not None and not fit.outer and not fit.loose and subject.seen.axis is None:
        # At other vocabulary sizes a mean over V, a truncation or padding shows.
        told, reduced, fit = vocabulary.compare_sizes(subject.probe, subject.reduced, fit)
        found += told
        subject = replace(subject, reduced=reduced)
    if fit is not None and fit.clean and subject.seen.interacting:
        found = _softened(fit, found)
    return Recognised(subject, fit, tuple(found))


def _identified(subject):
    """The fit, and findings of what it lacks."""
    if subject.seen.axis is not None:
        return _along(subject), []
    observed = subject.observe(subject.rows)
    if not np.all(np.isfinite(observed.values)):
        return _not_finite(subject, observed)
    if subject.seen.coarse:
        return mistaken.explain_loosely(observed, subject.rows), []
    if np.max(np.abs(observed.centred)) < 1e-6 * (np.max(np.abs(observed.values)) + 1e-6):
        return None, []
    fit = _plain_or_mistaken(subject, observed)
    told = (
        "student's and teacher's logits changed, alone and together",
        "other than the sum of both",
        "the sum of both",
    )
    apart = (
        fit is None
        and subject.probe.takes_teacher
        and mistaken.sides_apart(subject.observe, subject.rows)
    )
    return fit, [finding("sides_apart", told)] if apart else []


def _plain_or_mistaken(subject, observed):
    rows = subject.rows
    fit = identify(observed, rows)
    if fit is not None and not naming.is_odd(fit, observed, rows):
        return fit
    # Sizes of a top-k truncation are worth trying only if not every class of both sides matters.
    explained = mistaken.explain(
        subject.observe, rows, lambda: vocabulary.counting(subject.observe, rows)
    )
    if fit is None or (explained is not None and not naming.is_odd(explained, observed, rows)):
        fit = explained
    return fit or mistaken.explain_outer(observed, rows)


def _not_finite(subject, observed):
    """Values that are NaN may come from a term of the teacher alone: gradients still tell the
    student's part."""
    rows = subject.rows
    fit = mistaken.explain_fed(subject.observe, rows)
    if fit is not None:
        return fit, []
    got = float(observed.values[~np.isfinite(observed.values)][0])
    found = [finding("nan_on_ordinary_logits", ("logits of size 1.5", "a finite value", got))]
    values = gradients.integrated(subject.probe, rows, subject.reduced) if subject.by_row else None
    if values is None or not np.all(np.isfinite(values)):
        return None, found
    return mistaken.explain_student(Observed(values, rows.groups), rows), found


def _along(subject):
    """The loss with classes along an axis of positions, over which the softmax runs."""
    rows = subject.rows
    values = structure.observe_along(
        subject.probe, subject.seen.axis, rows.student, rows.teacher, rows.labels
    )
    if values is None or not np.all(np.isfinite(values)):
        return None
    observed = Observed(values, rows.groups)
    return None if np.allclose(observed.centred, 0) else identify(observed, rows)


def _softened(fit, found):
    """A weight λ of the menu that is taken over the batch, as its paper may have it, is no
    mistake."""
    if not any("λ" in candidate.entry.formula for candidate, _ in fit.parts):
        return found
    told = ("two rows changed, alone and together", "the changes add up", "they don't")
    kept = [one for one in found if one.code not in ("batch_dependence", "rows_interact")]
    return [*kept, finding("batch_weight", told)]
