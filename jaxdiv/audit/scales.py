"""Weights, scale and the temperature's factor of an identified loss."""

import math
from dataclasses import dataclass

from jaxdiv.audit import menu
from jaxdiv.audit.fits import rounded
from jaxdiv.audit.identify import Fit
from jaxdiv.audit.result import Finding, finding

_BITS = 1 / math.log(2)
_NEAR = 1e-3
# Factors by which textbooks differ.
_CUSTOMARY = {
    "jeffreys": (0.5,),
    "jensen_shannon": (2.0,),
    "total_variation": (2.0,),
    "squared_hellinger": (2.0, 4.0),
    "pearson_chi_squared": (0.5,),
    "neyman_chi_squared": (0.5,),
}


@dataclass(frozen=True)
class Scaled:
    """Text that `jaxdiv.get` takes, its factor, and findings on both."""

    text: str | None
    scale: float
    findings: tuple[Finding, ...] = ()


def explain(fit: Fit, unit: float) -> Scaled:
    """Divides the weights by `unit`, the reduction's, and by the factor of T that each part should have."""
    sign = -1 if sum(weight for _, weight in fit.parts) + sum(weight for _, weight, _ in fit.others) < 0 else 1
    findings = []
    if sign < 0:
        findings.append(finding("sign_flipped", ("ordinary rows", "a positive factor", "a negative one")))
    temperature = _temperature(fit)
    weights = {candidate: sign * weight / unit for candidate, weight in fit.parts}
    if fit.others:
        scale = (sum(weight for _, weight, _ in fit.others) + sum(weight for _, weight in fit.parts)) / unit
        return Scaled(_meant(fit), _plain(scale / temperature ** _other_power(scale, temperature)), tuple(findings))
    if not all(candidate.right_powers for candidate in weights):
        return _wrong_powers(weights, temperature, sign, findings)
    scaled = _single(*next(iter(weights.items())), temperature) if len(weights) == 1 else _sum(weights, temperature)
    if len(set(fit.temperatures)) > 1:  # told already; the factor of two temperatures has no right value
        scaled = Scaled(scaled.text, scaled.scale)
    return Scaled(scaled.text, sign * scaled.scale, (*findings, *scaled.findings))


def _temperature(fit):
    if fit.temperatures[0] == fit.temperatures[1]:
        return fit.temperatures[0]
    return max(fit.temperatures, key=lambda t: abs(math.log(t)))


def _other_power(scale, temperature):
    return 2 if temperature != 1 and _is(abs(scale), temperature**2) else 0


def _meant(fit):
    names = {other.meant for other, _, _ in fit.others} - {None}
    if not names:
        return None
    value = next((value for _, _, value in fit.others if value is not None), None)
    candidate = menu.Candidate(names.pop(), ())
    if value is not None:
        candidate = menu.Candidate(candidate.name, (("beta", value),))
    return candidate.text


def _is(value, target):
    return math.isclose(value, target, rel_tol=_NEAR)


def _power(value, temperature, powers):
    """The power of T that `value` is, or None."""
    return next((power for power in powers if _is(value, temperature**power)), None)


def _single(candidate, weight, temperature):
    right, text = candidate.power, candidate.text
    scale = weight / temperature**right
    if _is(scale, 1) or temperature == 1 or candidate.cold:
        return Scaled(text, _plain(scale), tuple(_scale_notes(scale)))
    if any(_is(scale, factor) for factor in _CUSTOMARY.get(candidate.name, ())):
        return Scaled(text, _plain(scale), tuple(_scale_notes(scale)))
    for factor in (1, _BITS, 2, 0.5):
        powers = [right, *(power for power in (0, 1, 2, -1, -2, 3, 4) if power != right)]
        powers = powers if factor == 1 else powers[:2]
        power = _power(weight / factor, temperature, powers)
        if power is not None:
            told = _factor_finding(temperature, power, right, weight) if power != right else ()
            return Scaled(text, _plain(scale), (*told, *_scale_notes(factor)))
    told = ("ordinary rows", f"T^{right} = {temperature**right:.4g}", weight)
    unclear = finding("temperature_factor_unclear", told, temperature=temperature, scale=weight)
    return Scaled(text, _plain(scale), (unclear,))


def _factor_finding(temperature, power, right, weight):
    told = ("ordinary rows", f"T^{right} = {temperature**right:.4g}", weight)
    return (finding("temperature_factor", told, temperature=temperature, got=power, power=right),)


def _scale_notes(scale):
    if _is(scale, 1):
        return
    if _is(scale, _BITS):
        yield finding("bits", ("ordinary rows", "1", float(scale)))
    else:
        yield finding("scale", ("ordinary rows", "1", float(scale)), scale=scale)


def _plain(value):
    return next(plain for plain in rounded(value) if math.isclose(plain, value, rel_tol=3e-4))


def _sum(weights, temperature):
    """Weights of a sum: as they are if one is 1, else brought to the sum 1."""
    cooled = {candidate: weight / temperature**candidate.power for candidate, weight in weights.items()}
    losses = [candidate for candidate in weights if candidate.entry.target]
    scale, findings = 1.0, []
    total = sum(cooled[candidate] for candidate in losses)
    powers = {power: sum(_at_power(c, weights[c], temperature, power) for c in losses) for power in (0, 1, 2)}
    warm = [candidate for candidate in losses if not candidate.cold]
    if temperature != 1 and warm and not _is(total, 1) and not all(_is(cooled[c], 1) for c in losses):
        got = next((power for power, sum_then in powers.items() if _is(sum_then, 1)), None)
        if got is not None:
            right = max(candidate.power for candidate in warm)
            findings += _factor_finding(temperature, got, right, float(sum(weights[c] for c in warm)))
        elif len(warm) < len(losses) and all(_is(weights[c], 1) for c in losses):
            right = max(candidate.power for candidate in warm)
            findings += _factor_finding(temperature, 0, right, 1.0)
        else:
            told = ("ordinary rows", "weights with the sum 1", f"{total:.4g}")
            findings.append(finding("temperature_factor_unclear", told, temperature=temperature, scale=total))
    if not any(_is(cooled[candidate], 1) for candidate in losses):
        scale = _plain(total)
        findings += _scale_notes(scale)
    parts = {candidate: _rounded_weight(weight / scale) for candidate, weight in cooled.items()}
    ordered = dict(sorted(parts.items(), key=lambda item: (not item[0].entry.target, -item[1])))
    return Scaled(menu.text_of(ordered), scale, (*findings, *_mixture_findings(ordered)))


def _at_power(candidate, weight, temperature, power):
    """The part's weight if its factor were T^power, which a part at T = 1 does not have."""
    return weight if candidate.cold else weight / temperature**power


def _rounded_weight(value):
    return next(plain for plain in rounded(value) if math.isclose(plain, value, rel_tol=5e-3))


def _mixture_findings(parts):
    """KL(p‖M) and KL(q‖M) of one M = βp + (1-β)q have the weights β and 1-β in a Jensen-Shannon divergence."""
    halves = [_halves(candidate, weight) for candidate, weight in parts.items()]
    if len(halves) < 2 or None in halves:
        return
    beta = halves[0][0]
    by_p, by_q = (sum(half[side] for half in halves) for side in (1, 2))
    same = all(math.isclose(half[0], beta, abs_tol=2e-3) for half in halves)
    if same and by_p > 0 and by_q > 0 and not math.isclose(by_p / (by_p + by_q), beta, abs_tol=2e-3):
        expected = f"{beta:.3g} and {1 - beta:.3g}"
        got = f"{by_p / (by_p + by_q):.3g} and {by_q / (by_p + by_q):.3g}"
        told = (f"M = {beta:.3g}·p + {1 - beta:.3g}·q", expected, got)
        yield finding("jsd_weights", told, weights=f"{got}, not {expected}")


def _halves(candidate, weight):
    """(β, weight of KL(p‖M), weight of KL(q‖M)) with M = βp + (1-β)q; None of another loss."""
    values = dict(candidate.parameters)
    return {
        "skew_kl": lambda: (values["alpha"], weight, 0.0),
        "skew_reverse_kl": lambda: (1 - values["alpha"], 0.0, weight),
        "jensen_shannon": lambda: (values["beta"], weight * values["beta"], weight * (1 - values["beta"])),
        "reverse_jensen_shannon": lambda: (1 - values["beta"], weight * (1 - values["beta"]), weight * values["beta"]),
    }.get(candidate.name, lambda: None)()


def _wrong_powers(weights, temperature, sign, findings):
    """A loss in parts, each of which needs its own power of T, with one power for all."""
    (candidate, weight), *_ = weights.items()
    right = candidate.entry.parts[1]
    got = candidate.powers[0]
    told = ("ordinary rows", f"T^{right[0]} and T^{right[1]}", f"T^{got} on all")
    power = " and T^".join(map(str, right))
    found = finding("temperature_factor", told, temperature=temperature, got=got, power=power)
    return Scaled(candidate.text, sign * _plain(weight), (*findings, found))
