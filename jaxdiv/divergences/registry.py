"""Every loss by name: its function, aliases, parameters, temperature factor, formula and source."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from jaxdiv.divergences import acceptance, cross_entropies, f_divergences, terms
from jaxdiv.divergences.terms import Term


@dataclass(frozen=True)
class Parameter:
    """A number that a loss takes, in an interval that is closed at its ends only where said."""

    default: float
    low: float
    high: float
    low_included: bool = False
    high_included: bool = False

    def allows(self, value: float) -> bool:
        at_end = (self.low_included and value == self.low) or (self.high_included and value == self.high)
        return self.low < value < self.high or at_end

    @property
    def interval(self) -> str:
        return f"{'[' if self.low_included else '('}{self.low:g}, {self.high:g}{']' if self.high_included else ')'}"


@dataclass(frozen=True)
class Entry:
    """One loss.

    Attributes:
      function: as in `jaxdiv`, taking teacher logits, or labels if `target` says so.
      temperature_power: T to this power keeps the gradient's size under a distillation temperature; 0: stays at T = 1.
      parts: where parts of a loss scale differently, a function that gives them, and each one's power.
      term: of an f-divergence, from its parameters.
    """

    function: Callable
    aliases: tuple[str, ...]
    temperature_power: int
    formula: str
    source: str
    target: str = "logits"
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: MappingProxyType({}))
    parts: tuple[Callable, tuple[int, ...]] | None = None
    term: Callable[..., Term] | None = None


_BETA = MappingProxyType({"beta": Parameter(default=0.5, low=0.0, high=1.0)})
_SKEW = MappingProxyType({"alpha": Parameter(default=0.1, low=0.0, high=1.0)})
_ALPHA = MappingProxyType({"alpha": Parameter(default=0.5, low=0.0, high=1.0, low_included=True, high_included=True)})
_RATE = MappingProxyType({"rate": Parameter(default=acceptance.RATE, low=0.0, high=float("inf"), low_included=True)})

ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        "cross_entropy": Entry(
            function=cross_entropies.cross_entropy,
            aliases=("ce",),
            temperature_power=2,
            formula="-Σ p·log q",
            source="arXiv 1503.02531, section 2",
        ),
        "cross_entropy_argmax": Entry(
            function=cross_entropies.cross_entropy_argmax,
            aliases=("ce_argmax",),
            temperature_power=1,
            formula="-log q(argmax p)",
            source="arXiv 1503.02531, section 2",
        ),
        "cross_entropy_data": Entry(
            function=cross_entropies.cross_entropy_data,
            aliases=("ce_data",),
            temperature_power=0,
            formula="-log q(label)",
            source="maximum likelihood",
            target="labels",
        ),
        "forward_kl": Entry(
            function=f_divergences.forward_kl,
            aliases=("kl",),
            temperature_power=2,
            formula="Σ p·log(p/q)",
            source="arXiv 1503.02531, section 2",
            term=lambda: terms.FORWARD_KL,
        ),
        "reverse_kl": Entry(
            function=f_divergences.reverse_kl,
            aliases=("rkl",),
            temperature_power=2,
            formula="Σ q·log(q/p)",
            source="arXiv 2306.08543, equation 1",
            term=lambda: terms.REVERSE_KL,
        ),
        "jeffreys": Entry(
            function=f_divergences.jeffreys,
            aliases=(),
            temperature_power=2,
            formula="Σ (q-p)·log(q/p)",
            source="Jeffreys (1946)",
            term=lambda: terms.JEFFREYS,
        ),
        "jensen_shannon": Entry(
            function=f_divergences.jensen_shannon,
            aliases=("jsd",),
            temperature_power=2,
            formula="β·Σ p·log(p/M) + (1-β)·Σ q·log(q/M), M = βp + (1-β)q",
            source="arXiv 2306.13649, equation 1",
            parameters=_BETA,
            term=terms.jensen_shannon,
        ),
        "skew_kl": Entry(
            function=f_divergences.skew_kl,
            aliases=("skl",),
            temperature_power=2,
            formula="Σ p·log(p/M), M = αp + (1-α)q",
            source="arXiv 2402.03898, definition 1",
            parameters=_SKEW,
            term=terms.skew_kl,
        ),
        "skew_reverse_kl": Entry(
            function=f_divergences.skew_reverse_kl,
            aliases=("srkl",),
            temperature_power=2,
            formula="Σ q·log(q/M), M = αq + (1-α)p",
            source="arXiv 2402.03898, section 3.1",
            parameters=_SKEW,
            term=terms.skew_reverse_kl,
        ),
        "alpha_divergence": Entry(
            function=f_divergences.alpha_divergence,
            aliases=("alpha",),
            temperature_power=2,
            formula="(1 - Σ p^α·q^(1-α))/(α(1-α))",
            source="Amari (1985)",
            parameters=_ALPHA,
            term=terms.alpha_divergence,
        ),
        "squared_hellinger": Entry(
            function=f_divergences.squared_hellinger,
            aliases=("hellinger",),
            temperature_power=2,
            formula="½·Σ (√p - √q)²",
            source="Hellinger (1909)",
            term=lambda: terms.SQUARED_HELLINGER,
        ),
        "total_variation": Entry(
            function=f_divergences.total_variation,
            aliases=("tv",),
            temperature_power=1,
            formula="½·Σ|q-p|",
            source="arXiv 2211.17192, theorem 3.5",
            term=lambda: terms.TOTAL_VARIATION,
        ),
        "negative_log_acceptance": Entry(
            function=acceptance.negative_log_acceptance,
            aliases=("nla",),
            temperature_power=1,
            formula="-log Σ min(p, q)",
            source="arXiv 2602.23881",
        ),
        "lk_hybrid": Entry(
            function=acceptance.lk_hybrid,
            aliases=(),
            temperature_power=1,
            formula="λ·KL + (1-λ)·TV, λ = exp(-rate·acceptance)",
            source="arXiv 2602.23881",
            parameters=_RATE,
            parts=(acceptance.lk_hybrid_parts, (2, 1)),
        ),
    }
)

_BY_ALIAS = {alias: name for name, entry in ENTRIES.items() for alias in (name, *entry.aliases)}


def names() -> tuple[str, ...]:
    """Every loss's full name, sorted."""
    return tuple(sorted(ENTRIES))


def canonical(name: str) -> str:
    """The full name of a name or alias.

    Raises:
      ValueError: with the nearest known name.
    """
    if name in _BY_ALIAS:
        return _BY_ALIAS[name]
    near = difflib.get_close_matches(name.lower(), _BY_ALIAS, n=1)
    mend = f"did you mean `{near[0]}`? " if near else ""
    raise ValueError(f"unknown loss `{name}`; {mend}Known: {', '.join(_known())}")


def _known():
    return (f"{name} ({', '.join(ENTRIES[name].aliases)})" if ENTRIES[name].aliases else name for name in names())
