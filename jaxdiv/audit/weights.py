"""Reads the weights of a fit: the loss as text, its scale, and whether its factor of T is right."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jaxdiv.audit.findings import Finding, finding
from jaxdiv.audit.fits import Fit, is_near
from jaxdiv.audit.formulas import Candidate
from jaxdiv.audit.refine import plainest
from jaxdiv.divergences.registry import ENTRIES


class _Way(NamedTuple):
    """An explanation of weights by powers of T.

    Attributes:
      kind: `right` if each part has its own power, `common` if all have one, `labels` if the labels
        have T² too, `unclear` if nothing explains the weights.
      powers: the power of T in the weight of each part.
    """

    kind: str
    powers: dict[Candidate, int]


@dataclass(frozen=True)
class _Weights:
    """Weights of a fit's parts in units of the reduction, with a positive sum.

    Attributes:
      by_part: the weight of each part, the factor of T included.
      temperature: T.
    """

    by_part: dict[Candidate, float]
    temperature: float

    @property
    def is_single(self) -> bool:
        return len(self.by_part) == 1

    @property
    def losses(self) -> list[Candidate]:
        """The parts that share the weight: regularizers only if there is nothing else."""
        return [part for part in self.by_part if part.is_loss] or list(self.by_part)

    @property
    def tempered(self) -> list[Candidate]:
        return [loss for loss in self.losses if not loss.fixed]

    @property
    def right_powers(self) -> dict[Candidate, int]:
        return {part: part.power for part in self.by_part}

    def without(self, powers: dict[Candidate, int]) -> dict[Candidate, float]:
        """Returns the weight of each part without its power of T."""
        t = self.temperature
        return {part: weight / t ** powers[part] for part, weight in self.by_part.items()}


def normalize_weights(fit: Fit, unit: float) -> tuple[str, float, list[Finding]]:
    """Divides the weights by `unit`, the reduction's, and by the factor of T that each should have.

    The first explanation of the weights that fits is reported: each has its own power of T, all
    have one, or the labels have T² too. If none fits, the scale is a note.

    Returns:
      text that `jaxdiv.get` takes, its factor, and findings on both.
    """
    sign = -1 if sum(weight for _, weight in fit.parts) < 0 else 1
    by_part = {candidate: sign * weight / unit for candidate, weight in fit.parts}
    weights = _Weights(by_part, fit.temperature)
    way, factor = _first_plain_way(weights)
    shares = weights.without(weights.right_powers if weights.is_single else way.powers)
    scale = 1.0
    if weights.is_single or not any(is_near(shares[loss], 1) for loss in weights.losses):
        scale = plainest(sum(shares[loss] for loss in weights.losses))
    findings = []
    if sign < 0:
        evidence = "ordinary rows", "a positive factor", "a negative one"
        findings.append(finding("sign_flipped", evidence))
    if len(set(fit.temperatures)) == 1:  # the factor of two temperatures has no right value
        unexplained = factor if weights.is_single and factor else scale
        if way.kind != "unclear" and not is_near(unexplained, 1):
            evidence = "ordinary rows", "1", float(unexplained)
            findings.append(finding("scale", evidence, scale=unexplained))
        findings += _temperature_findings(weights, way, shares)
    return _text(shares, scale), sign * scale, findings


def _first_plain_way(weights: _Weights) -> tuple[_Way, float | None]:
    """Returns the first explanation of the weights, and the customary factor that is left of them.

    Without an explanation the factor is None.
    """
    ways = _ways(weights)
    factors = weights.losses[0].factors if weights.is_single else (1.0,)
    for way, factor in itertools.product(ways, factors):
        shares = weights.without(way.powers)
        each = [shares[loss] for loss in weights.losses]
        # Weights of 1 each show where T stands if they are at their own power, or beside labels.
        beside_labels = len(weights.tempered) < len(weights.losses)
        telling = way.kind != "common" or (beside_labels and not any(way.powers.values()))
        ones = not weights.is_single and telling and all(is_near(one, 1) for one in each)
        if ones or is_near(sum(each), factor):
            return way, factor
    # Where T is 1, or no loss is at T, only the scale can be wrong.
    return _Way("right" if len(ways) == 1 else "unclear", weights.right_powers), None


def _ways(weights: _Weights) -> list[_Way]:
    """Returns the explanations in the order in which they are tried."""
    right = weights.right_powers
    ways = [_Way("right", right)]
    if weights.temperature != 1 and weights.tempered:
        ways += [_Way("common", {c: 0 if c.fixed else k for c in right}) for k in (0, 1, 2)]
        labels = {c: 2 if c.fixed and c.is_loss else power for c, power in right.items()}
        ways.append(_Way("labels", labels))
    return ways


def _temperature_findings(
    weights: _Weights, way: _Way, shares: dict[Candidate, float]
) -> Iterator[Finding]:
    """Yields what is wrong with the factor of T; `shares` are the weights without it."""
    t, tempered = weights.temperature, weights.tempered
    power = max((loss.power for loss in tempered), default=0)
    whole = float(sum(weights.by_part[loss] for loss in tempered))
    evidence = "ordinary rows", f"T^{power} = {t**power:.4g}", whole
    match way.kind:
        case "unclear" if weights.is_single:
            yield finding("temperature_factor_unclear", evidence, temperature=t, scale=whole)
        case "unclear":
            total = sum(shares[loss] for loss in weights.losses)
            evidence = "ordinary rows", "weights with the sum 1", f"{total:.4g}"
            yield finding("temperature_factor_unclear", evidence, temperature=t, scale=total)
        case "labels":
            label = next(loss for loss in weights.losses if loss.fixed)
            labels = "the weight on labels", f"{shares[label]:.4g}", weights.by_part[label]
            yield finding("labels_factor", labels)
        case "common":
            details = {"temperature": t, "got": way.powers[tempered[0]], "power": power}
            yield finding("temperature_factor", evidence, **details)


def _text(shares: dict[Candidate, float], scale: float) -> str:
    """Returns the weighted sum as `jaxdiv.get` takes it, the heaviest loss first."""
    parts = {part: plainest(weight / scale, 5e-3) for part, weight in shares.items()}
    order = list(ENTRIES)
    ranked = sorted(parts.items(), key=lambda x: (not x[0].is_loss, -x[1], order.index(x[0].name)))
    return " + ".join(("" if w == 1 else f"{w:.4g}*") + part.text for part, w in ranked)
