"""Weights, scale and the temperature's factor of an identified loss.

What a factor may be is a table, the likeliest first; the first row that fits the weights is told.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jaxdiv.audit import menu, mixtures
from jaxdiv.audit.fits import rounded
from jaxdiv.audit.identify import Fit
from jaxdiv.audit.menu import Candidate
from jaxdiv.audit.result import Finding, finding

_BITS = 1 / math.log(2)
_NEAR = 1e-3
_LOOSE = 1e-2  # of what goes in steps
# Factors by which textbooks differ.
_CUSTOMARY = {
    "jeffreys": (0.5,),
    "jensen_shannon": (2.0,),
    "total_variation": (2.0,),
    "squared_hellinger": (2.0, 4.0),
    "pearson_chi_squared": (0.5,),
    "neyman_chi_squared": (0.5,),
}
# (factor, powers of T beside the right one) that one loss may have, after what is customary.
_SINGLE = ((1.0, (0, 1, 2, -1, -2, 3, 4)), (_BITS, (0,)), (2.0, (0,)), (0.5, (0,)))


@dataclass(frozen=True)
class Scaled:
    """Text that `jaxdiv.get` takes, its factor, and findings on both."""

    text: str | None
    scale: float
    findings: tuple[Finding, ...] = ()


def explain(fit: Fit, unit: float) -> Scaled:
    """Divides the weights by `unit`, the reduction's, and by the factor of T that each part should
    have."""
    sign = -1 if sum(fit.weights) < 0 else 1
    temperature = max(fit.temperatures, key=lambda t: abs(math.log(t)))
    if fit.others:
        scaled = _of_others(fit, sum(fit.weights) / unit, temperature)
    else:
        weights = {candidate: sign * weight / unit for candidate, weight in fit.parts}
        if fit.loose:
            weights = {
                c: _plain(w / temperature**c.power, _LOOSE) * temperature**c.power
                for c, w in weights.items()
            }
        scaled = _of_weights(weights, temperature)
        scaled = Scaled(scaled.text, sign * scaled.scale, scaled.findings)
        if (
            len(set(fit.temperatures)) > 1
        ):  # told already; the factor of two temperatures has no right value
            scaled = Scaled(scaled.text, scaled.scale)
    flipped = (
        (finding("sign_flipped", ("ordinary rows", "a positive factor", "a negative one")),)
        if sign < 0
        else ()
    )
    return Scaled(scaled.text, scaled.scale, (*flipped, *scaled.findings))


def _of_others(fit, scale, temperature):
    power = 2 if temperature != 1 and _is(abs(scale), temperature**2) else 0
    return Scaled(_meant(fit), _plain(scale / temperature**power))


def _meant(fit):
    name = next((other.meant for other, _, _ in fit.others if other.meant), None)
    if name is None:
        return None
    value = next((value for _, _, value in fit.others if value is not None), None)
    return Candidate(name, () if value is None else (("beta", value),)).text


def _of_weights(weights, temperature):
    if not all(candidate.right_powers for candidate in weights):
        return _wrong_powers(*next(iter(weights.items())), temperature)
    if len(weights) == 1:
        return _single(*next(iter(weights.items())), temperature)
    return _sum(weights, temperature)


def _is(value, target):
    return math.isclose(value, target, rel_tol=_NEAR)


def _plain(value, tolerance=3e-4):
    return next(plain for plain in rounded(value) if math.isclose(plain, value, rel_tol=tolerance))


def _scale_notes(scale):
    if _is(scale, _BITS):
        yield finding("bits", ("ordinary rows", "1", float(scale)))
    elif not _is(scale, 1):
        yield finding("scale", ("ordinary rows", "1", float(scale)), scale=scale)


def _wrong_powers(candidate, weight, temperature):
    """A loss in parts, each of which needs its own power of T, with one power for all."""
    right, got = candidate.entry.parts[1], candidate.powers[0]
    told = ("ordinary rows", f"T^{right[0]} and T^{right[1]}", f"T^{got} on all")
    power = " and T^".join(map(str, right))
    found = finding("temperature_factor", told, temperature=temperature, got=got, power=power)
    return Scaled(candidate.text, _plain(weight), (found,))


# One loss


def _single(candidate, weight, temperature):
    right = candidate.power
    scale = _plain(weight / temperature**right)
    if temperature == 1 or candidate.cold:
        return Scaled(candidate.text, scale, tuple(_scale_notes(scale)))
    for factor, power in _single_ways(candidate):
        if _is(weight, factor * temperature**power):
            told = () if power == right else (_factor_finding(temperature, power, right, weight),)
            return Scaled(candidate.text, scale, (*told, *_scale_notes(factor)))
    told = ("ordinary rows", f"T^{right} = {temperature**right:.4g}", weight)
    unclear = finding("temperature_factor_unclear", told, temperature=temperature, scale=weight)
    return Scaled(candidate.text, scale, (unclear,))


def _single_ways(candidate) -> Iterator[tuple[float, int]]:
    """(factor, power of T): the weight of a loss, the likeliest first."""
    right = candidate.power
    yield from ((factor, right) for factor in (1.0, *_CUSTOMARY.get(candidate.name, ())))
    for factor, powers in _SINGLE:
        yield from ((factor, power) for power in (right, *powers))


def _factor_finding(temperature, power, right, weight):
    told = ("ordinary rows", f"T^{right} = {temperature**right:.4g}", float(weight))
    return finding("temperature_factor", told, temperature=temperature, got=power, power=right)


# A sum


class _Way(NamedTuple):
    """Where T stands in a sum: its powers on the parts at T (None: each part's own) and on those at
    1, and the finding if it is so."""

    warm: int | None
    cold: int = 0
    code: str | None = None

    def cooled(self, weights, temperature):
        """The weights without T."""
        return {c: weight / temperature ** self._power(c) for c, weight in weights.items()}

    def _power(self, candidate):
        if candidate.cold:
            return self.cold if candidate.entry.target else 0
        return candidate.power if self.warm is None else self.warm


_RIGHT = _Way(None)
_WAYS = (
    _RIGHT,
    *(_Way(power, code="temperature_factor") for power in (0, 1, 2)),
    _Way(None, cold=2, code="labels_factor"),
)


def _sum(weights, temperature):
    """Weights of a sum: as they are if one is 1, else brought to the sum 1."""
    losses = [candidate for candidate in weights if candidate.entry.target]
    warm = [candidate for candidate in losses if not candidate.cold]
    way, findings = _RIGHT, []
    if temperature != 1 and warm:
        fitting = (way for way in _WAYS if _is_plain(way, way.cooled(weights, temperature), losses))
        way = next(fitting, None)
        findings = _way_findings(way, weights, warm, temperature)
    cooled = (way or _RIGHT).cooled(weights, temperature)
    scale = 1.0
    if not any(_is(cooled[candidate], 1) for candidate in losses):
        scale = _plain(sum(cooled[candidate] for candidate in losses))
        findings += _scale_notes(scale)
    parts = {candidate: _plain(weight / scale, 5e-3) for candidate, weight in cooled.items()}
    ordered = dict(sorted(parts.items(), key=lambda item: (not item[0].entry.target, -item[1])))
    return Scaled(menu.text_of(ordered), scale, (*findings, *mixtures.weight_findings(ordered)))


def _is_plain(way, cooled, losses):
    """Whether the weights of losses have the sum 1, or are all 1 where that says where T stands."""
    each = [cooled[candidate] for candidate in losses]
    telling = way in (_RIGHT, _WAYS[-1]) or (
        way.warm == 0 and any(candidate.cold for candidate in losses)
    )
    return _is(sum(each), 1) or (telling and all(_is(weight, 1) for weight in each))


def _way_findings(way, weights, warm, temperature):
    right = max(candidate.power for candidate in warm)
    if way is None:
        total = sum(
            weight for c, weight in _RIGHT.cooled(weights, temperature).items() if c.entry.target
        )
        told = ("ordinary rows", "weights with the sum 1", f"{total:.4g}")
        return [finding("temperature_factor_unclear", told, temperature=temperature, scale=total)]
    if way.code == "temperature_factor":
        return [_factor_finding(temperature, way.warm, right, sum(weights[c] for c in warm))]
    if way.code == "labels_factor":
        labels = next(weight for c, weight in weights.items() if c.cold and c.entry.target)
        told = (
            "weight of the cross-entropy with labels",
            f"{labels / temperature**2:.4g}",
            float(labels),
        )
        return [finding("labels_factor", told)]
    return []
