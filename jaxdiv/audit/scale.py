"""Weights, scale and the temperature's factor of an identified loss."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxdiv.audit import candidates
from jaxdiv.audit.candidates import Candidate
from jaxdiv.audit.fit import plain
from jaxdiv.audit.identify import Fit, factors, is_near
from jaxdiv.audit.result import Finding, finding
from jaxdiv.divergences.registry import ENTRIES


class ScaledLoss(NamedTuple):
    """Text that `jaxdiv.get` takes, its factor, and findings on both."""

    text: str
    scale: float
    findings: tuple[Finding, ...] = ()


def normalize_weights(fit: Fit, unit: float) -> ScaledLoss:
    """Divides the weights by `unit`, the reduction's, and by the factor of T that each should have.

    The first explanation of a weight that fits is reported; if none does, the scale is a note.
    """
    total = sum(weight for _, weight in fit.parts)
    sign = -1 if total < 0 else 1
    weights = {candidate: sign * weight / unit for candidate, weight in fit.parts}
    text, scale, findings = (_single if len(weights) == 1 else _pair)(weights, fit.temperature)
    if len(set(fit.temperatures)) > 1:
        findings = ()  # the factor of two temperatures has no right value
    if sign < 0:
        evidence = "ordinary rows", "a positive factor", "a negative one"
        findings = (finding("sign_flipped", evidence), *findings)
    return ScaledLoss(text, sign * scale, findings)


def _scale_note(scale) -> Iterator[Finding]:
    if not is_near(scale, 1):
        yield finding("scale", ("ordinary rows", "1", float(scale)), scale=scale)


def _single(weights: dict[Candidate, float], t: float) -> ScaledLoss:
    ((candidate, weight),) = weights.items()
    right = candidate.power
    scale = plain(weight / t**right)
    if t == 1 or candidate.fixed:
        return ScaledLoss(candidate.text, scale, tuple(_scale_note(scale)))
    for power in (right, 0, 1, 2):
        for factor in factors(candidate):
            if is_near(weight, factor * t**power):
                wrong = () if power == right else (_factor_finding(t, power, right, weight),)
                return ScaledLoss(candidate.text, scale, (*wrong, *_scale_note(factor)))
    evidence = "ordinary rows", f"T^{right} = {t**right:.4g}", float(weight)
    unclear = finding("temperature_factor_unclear", evidence, temperature=t, scale=weight)
    return ScaledLoss(candidate.text, scale, (unclear,))


def _factor_finding(t, power, right, weight) -> Finding:
    evidence = "ordinary rows", f"T^{right} = {t**right:.4g}", float(weight)
    return finding("temperature_factor", evidence, temperature=t, got=power, power=right)


def _pair(weights: dict[Candidate, float], t: float) -> ScaledLoss:
    """Returns weights of a pair: as they are if one is 1, else brought to the sum 1."""
    losses = [candidate for candidate in weights if candidate.is_loss]
    at_t = [candidate for candidate in losses if not candidate.fixed]
    ways = ("right", 0, 1, 2, "labels") if t != 1 and at_t else ("right",)
    way = next((way for way in ways if _is_plain(way, weights, losses, t)), None)
    without = {c: w / t ** _power("right" if way is None else way, c) for c, w in weights.items()}
    findings = []
    if way is None and len(ways) > 1:
        total = sum(without[candidate] for candidate in losses)
        evidence = "ordinary rows", "weights with the sum 1", f"{total:.4g}"
        findings = [finding("temperature_factor_unclear", evidence, temperature=t, scale=total)]
    elif way == "labels":
        label = next(candidate for candidate in losses if candidate.fixed)
        evidence = "the weight on labels", f"{without[label]:.4g}", float(weights[label])
        findings = [finding("labels_factor", evidence)]
    elif isinstance(way, int):
        right = max(candidate.power for candidate in at_t)
        findings = [_factor_finding(t, way, right, sum(weights[c] for c in at_t))]
    scale = 1.0
    if not any(is_near(without[candidate], 1) for candidate in losses):
        scale = plain(sum(without[candidate] for candidate in losses))
        findings += _scale_note(scale)
    parts = {c: plain(w / scale, 5e-3) for c, w in without.items()}
    order = list(ENTRIES)

    def rank(item):
        return not item[0].is_loss, -item[1], order.index(item[0].name)

    ordered = dict(sorted(parts.items(), key=rank))
    return ScaledLoss(candidates.text_of(ordered), scale, tuple(findings))


def _power(way, candidate) -> int:
    """Returns the power of T on a part: its own, one for all at T, or T² on labels too."""
    if candidate.fixed:
        return 2 if way == "labels" and candidate.is_loss else 0
    return way if isinstance(way, int) else candidate.power


def _is_plain(way, weights, losses, t) -> bool:
    """Returns whether the weights sum to 1, or are all 1 where that shows where T stands."""
    each = [weights[candidate] / t ** _power(way, candidate) for candidate in losses]
    with_labels = any(candidate.fixed for candidate in losses)
    telling = way in ("right", "labels") or (way == 0 and with_labels)
    return is_near(sum(each), 1) or (telling and all(is_near(one, 1) for one in each))
