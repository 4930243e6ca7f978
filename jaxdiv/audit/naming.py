"""From a fit to words: the mistakes it contains, what was added, and whether it is what its author
means."""

import re

import numpy as np

from jaxdiv.audit.fits import Observed, centre
from jaxdiv.audit.forms import log_softmax
from jaxdiv.audit.identify import Fit, is_nothing, offset
from jaxdiv.audit.inputs import Rows, random_rows
from jaxdiv.audit.probe import Probe
from jaxdiv.audit.result import Finding, finding
from jaxdiv.audit.scales import Scaled
from jaxdiv.divergences.loss import get
from jaxdiv.divergences.registry import ENTRIES

_FED = {"probabilities": "softmax_missing", "log-probabilities": "log_softmax_missing"}
_VAGUE = {"alpha"}  # aliases that stand in names for other things


def of_fit(fit: Fit, scaled: Scaled) -> list[Finding]:
    """The mistakes that explain the values."""
    told = (
        "ordinary rows",
        f"{scaled.text or 'a loss of the menu'}",
        f"this mistake in it, to {fit.residual:.1e}",
    )
    found = list(_of_readings(fit, told))
    for side, fed in zip(("student", "teacher"), fit.fed, strict=True):
        if fed != "logits":
            evidence = (f"{fed} of the {side} handed over", "no loss of the menu", f"{scaled.text}")
            found.append(finding(_FED[fed], evidence, side=side))
    if fit.temperatures[0] != fit.temperatures[1]:
        found.append(
            finding(
                "temperature_one_side",
                told,
                student=fit.temperatures[1],
                teacher=fit.temperatures[0],
            )
        )
    for other, _, value in fit.others:
        form = (
            other.text if value is None else f"{other.text} with M = {value:g}·p + {1 - value:g}·q"
        )
        found.append(finding(other.code, ("ordinary rows", "a loss of the menu", form), form=form))
    if fit.outer:
        found.append(finding("outer_function", told, outer=fit.outer, found=scaled.text))
    if len(fit.parts) > 1 and any(candidate.warm for candidate, _ in fit.parts):
        found.append(finding("temperature_on_labels", told, temperature=fit.temperature))
    names = [candidate.name for candidate, _ in fit.parts]
    if fit.clean and names == ["cross_entropy"]:
        found.append(
            finding(
                "entropy_dropped", ("equal sides", "0 of kl", "the teacher's entropy"), found="kl"
            )
        )
    return found


def _of_readings(fit, told):
    teacher, student = fit.readings
    if teacher.code == student.code and teacher.details == student.details and teacher.code:
        yield _of_reading(teacher, "student and teacher", told, fit.temperature)
        return
    for side, reading in (("teacher", teacher), ("student", student)):
        if reading.code:
            yield _of_reading(reading, side, told, fit.temperature)


def _of_reading(reading, side, told, temperature):
    details = dict(reading.details) | {"side": side}
    if reading.code == "temperature_one_side":
        details |= {
            "student": 1.0 if side == "student" else temperature,
            "teacher": 1.0 if side == "teacher" else temperature,
        }
    return finding(reading.code, told, **details)


def is_odd(fit: Fit, observed: Observed, rows: Rows) -> bool:
    """Whether a mistake may explain it better: a part of next to no weight, or a function of the
    teacher is added.

    A constant and a multiple of the teacher's entropy are not odd.
    """
    if fit.outer or fit.fed != ("logits", "logits"):
        return False
    weights = [abs(weight) for candidate, weight in fit.parts if candidate.entry.target]
    if weights and min(weights) < 1e-2 * max(weights):
        return True
    extra = offset(fit, observed, rows)
    return not is_nothing(extra, observed) and _added(fit, extra, observed, rows) == "teacher_term"


def _added(fit, extra, observed, rows):
    by_teacher = extra - centre(extra, observed.groups)
    if np.ptp(by_teacher) < 3e-4 * (np.abs(by_teacher).max() + 1e-30):
        return "offset"
    log = log_softmax(rows.teacher / fit.temperature)
    entropy = -(np.exp(log) * log).sum(-1)
    line = np.polyval(np.polyfit(entropy, by_teacher, 1), entropy)
    return (
        "entropy_dropped"
        if np.abs(line - by_teacher).max() < 1e-3 * np.ptp(by_teacher)
        else "teacher_term"
    )


def of_offset(fit: Fit, extra: np.ndarray, observed: Observed, rows: Rows) -> list[Finding]:
    """What was added to a loss: a constant, the teacher's entropy, or another function of the
    teacher."""
    found = " + ".join(candidate.text for candidate, _ in fit.parts)
    code = _added(fit, extra, observed, rows)
    by_teacher = float((extra - centre(extra, observed.groups))[0])
    told = ("ordinary rows", found, f"{found} and {by_teacher:.5g} for the first teacher")
    return [finding(code, told, offset=by_teacher, found=found)]


def examine(probe: Probe, text: str | None, meant, fit: Fit | None) -> list[Finding]:
    """Whether it is what its author says: by `expected`, else by the function's name."""
    if meant is not None:
        return _against(text, meant)
    said = said_by(probe.name)
    if text is None or said is None or len(fit.parts) != 1:
        return []
    named = fit.parts[0][0].name
    if (
        said == named
        or _same(get(text), get(said))
        or (said, named) == ("forward_kl", "cross_entropy")
    ):
        return []
    told = (f"a function called {probe.name}", said, text)
    return [finding("name_disagrees", told, name=probe.name, found=text)]


def _against(text, meant):
    if text is None:
        told = ("ordinary rows", meant.text, "no loss of the menu")
        return [finding("other_divergence", told, found="no loss of the menu", expected=meant.text)]
    loss = get(text)
    if _same(loss, meant):
        return []
    code = "direction" if _same(loss, meant, swapped=True) else "other_divergence"
    return [finding(code, ("ordinary rows", meant.text, text), found=text, expected=meant.text)]


def _same(loss, other, swapped=False):
    """Whether two losses are one up to a factor and a function of the teacher."""
    rows = random_rows(11)
    sides = [rows.student, rows.teacher]
    one = np.asarray(loss(*sides, labels=rows.labels), np.float64)
    two = np.asarray(other(*(sides[::-1] if swapped else sides), labels=rows.labels), np.float64)
    if not swapped:
        one, two = centre(one, rows.groups), centre(two, rows.groups)
    factor = (one @ two) / (two @ two)
    return bool(np.linalg.norm(one - factor * two) < 2e-3 * np.linalg.norm(one))


def said_by(name: str) -> str | None:
    """The loss of the menu that a function's name plainly says, by the longest name or alias in
    it."""
    words = f"_{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()}_"
    known = {
        alias: full
        for full, entry in ENTRIES.items()
        for alias in (full, *entry.aliases)
        if alias not in _VAGUE
    }
    inside = [alias for alias in known if f"_{alias}_" in words]
    if not inside:
        return None
    longest = max(inside, key=len)
    others = {known[alias] for alias in inside if alias not in longest}
    return None if others or ("reverse" in words and "reverse" not in longest) else known[longest]
