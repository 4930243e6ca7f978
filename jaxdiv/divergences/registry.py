"""The registry: every loss by name, with its function, parameters, formula, range and source."""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxdiv.divergences import (
    acceptance,
    adaptive,
    cross_entropies,
    f_divergences,
    hard_labels,
    regularizers,
    renyi,
    terms,
)
from jaxdiv.divergences.entry import Entry, Parameter

_INFINITY = float("inf")
_LOW, _HIGH = f_divergences.ALPHA_RANGE


def _one(name: str, **interval) -> Mapping[str, Parameter]:
    return MappingProxyType({name: Parameter(**interval)})


def _as(name: str) -> Callable:
    """Returns the `Entry.mirror` of a loss whose mirror `name` has the same parameters."""
    return lambda **parameters: (1.0, name, parameters)


def _mirrored_renyi(alpha):
    return (alpha / (1 - alpha), "renyi", {"alpha": 1 - alpha}) if alpha < 1 else None


_SMOOTHING = _one("smoothing", default=0.0, low=0.0, high=1.0, low_included=True)
_BETA = _one("beta", default=0.5, low=0.0, high=1.0)
_SKEW = _one("alpha", default=0.1, low=0.0, high=1.0)

ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        "cross_entropy": Entry(
            cross_entropies.cross_entropy,
            ("ce",),
            formula="-Σ p·log q",
            source="arXiv 1503.02531, section 2",
            parameters=_SMOOTHING,
        ),
        "cross_entropy_argmax": Entry(
            hard_labels.cross_entropy_argmax,
            ("ce_argmax",),
            temperature_power=1,
            formula="-log q(argmax p)",
            source="arXiv 1503.02531, section 2",
            coarsens=False,
            parameters=_SMOOTHING,
        ),
        "cross_entropy_data": Entry(
            hard_labels.cross_entropy_data,
            ("ce_data",),
            temperature_power=0,
            formula="-log q(label)",
            source="maximum likelihood; smoothing: arXiv 1512.00567, section 7",
            target="labels",
            parameters=_SMOOTHING,
        ),
        "cross_entropy_top_k": Entry(
            cross_entropies.cross_entropy_top_k,
            ("ce_top_k",),
            temperature_power=1,
            formula="-Σ p·log q over the k largest p",
            source="HASS, arXiv 2408.15766, section 3.1",
            coarsens=False,
            parameters=_one(
                "k", default=cross_entropies.CLASSES, low=1, high=1e9, low_included=True, whole=True
            ),
        ),
        "z_loss": Entry(
            regularizers.z_loss,
            (),
            temperature_power=0,
            formula="(log Σ exp z)², z the student's logits",
            source="PaLM, arXiv 2204.02311, section 5",
            target="",
        ),
        "forward_kl": Entry(
            f_divergences.forward_kl,
            ("kl",),
            formula="Σ p·log(p/q)",
            source="arXiv 1503.02531, section 2",
            term=lambda: terms.FORWARD_KL,
            mirror=_as("reverse_kl"),
        ),
        "reverse_kl": Entry(
            f_divergences.reverse_kl,
            ("rkl",),
            formula="Σ q·log(q/p)",
            source="MiniLLM, arXiv 2306.08543, equation 1",
            term=lambda: terms.REVERSE_KL,
            mirror=_as("forward_kl"),
        ),
        "jeffreys": Entry(
            f_divergences.jeffreys,
            (),
            formula="Σ (q-p)·log(q/p)",
            symmetric="yes",
            source="Jeffreys (1946)",
            term=lambda: terms.JEFFREYS,
            mirror=_as("jeffreys"),
        ),
        "adaptive_kl": Entry(
            adaptive.adaptive_kl,
            ("akl",),
            formula="λ·KL(p‖q) + (1-λ)·KL(q‖p), λ the share of Σ abs(q-p) on the likeliest p",
            source="AKL, arXiv 2404.02657",
            coarsens=False,
            parameters=_one("head", default=adaptive.HEAD, low=0.0, high=1.0),
        ),
        "jensen_shannon": Entry(
            f_divergences.jensen_shannon,
            ("jsd",),
            formula="β·KL(p‖M) + (1-β)·KL(q‖M), M = βp + (1-β)q",
            range="[0, H(β)]",
            symmetric="at β = ½",
            source="GKD, arXiv 2306.13649, equation 1",
            parameters=_BETA,
            term=terms.jensen_shannon,
            mirror=_as("reverse_jensen_shannon"),
        ),
        "reverse_jensen_shannon": Entry(
            f_divergences.reverse_jensen_shannon,
            ("rjsd",),
            formula="β·KL(q‖M) + (1-β)·KL(p‖M), M = βq + (1-β)p",
            range="[0, H(β)]",
            symmetric="at β = ½",
            source="Lin (1991), equation 4.1, β on the student",
            parameters=_BETA,
            term=lambda beta: terms.jensen_shannon(1 - beta),
            mirror=_as("jensen_shannon"),
        ),
        "skew_kl": Entry(
            f_divergences.skew_kl,
            ("skl",),
            formula="KL(p‖M), M = αp + (1-α)q",
            range="[0, -log α]",
            source="DistiLLM, arXiv 2402.03898, definition 1",
            parameters=_SKEW,
            term=terms.skew_kl,
            mirror=_as("skew_reverse_kl"),
        ),
        "skew_reverse_kl": Entry(
            f_divergences.skew_reverse_kl,
            ("srkl",),
            formula="KL(q‖M), M = αq + (1-α)p",
            range="[0, -log α]",
            source="DistiLLM, arXiv 2402.03898, section 3.1",
            parameters=_SKEW,
            term=terms.skew_reverse_kl,
            mirror=_as("skew_kl"),
        ),
        "alpha_divergence": Entry(
            f_divergences.alpha_divergence,
            ("alpha",),
            formula="(1 - Σ p^α·q^(1-α))/(α(1-α))",
            range="[0, 1/(α(1-α))], [0, ∞] for α outside (0, 1)",
            symmetric="at α = ½",
            source="Amari (1985), section 3.5",
            parameters=_one(
                "alpha", default=0.5, low=_LOW, high=_HIGH, low_included=True, high_included=True
            ),
            term=terms.alpha_divergence,
            mirror=lambda alpha: (1.0, "alpha_divergence", {"alpha": 1 - alpha}),
        ),
        "renyi": Entry(
            renyi.renyi,
            (),
            formula="log(Σ p^α·q^(1-α))/(α-1)",
            symmetric="at α = ½",
            source="arXiv 1206.2459, equation 1",
            parameters=_one("alpha", default=0.5, low=0.0, high=renyi.LARGEST, high_included=True),
            mirror=_mirrored_renyi,
        ),
        "bhattacharyya": Entry(
            renyi.bhattacharyya,
            (),
            formula="-log Σ √(pq)",
            symmetric="yes",
            source="Bhattacharyya (1943)",
            mirror=_as("bhattacharyya"),
        ),
        "squared_hellinger": Entry(
            f_divergences.squared_hellinger,
            ("hellinger",),
            formula="½·Σ (√p - √q)²",
            range="[0, 1]",
            symmetric="yes",
            source="Hellinger (1909)",
            term=lambda: terms.SQUARED_HELLINGER,
            mirror=_as("squared_hellinger"),
        ),
        "pearson_chi_squared": Entry(
            f_divergences.pearson_chi_squared,
            ("pearson",),
            formula="Σ (q-p)²/q",
            source="Pearson (1900)",
            term=lambda: terms.PEARSON_CHI_SQUARED,
            mirror=_as("neyman_chi_squared"),
        ),
        "neyman_chi_squared": Entry(
            f_divergences.neyman_chi_squared,
            ("neyman",),
            formula="Σ (q-p)²/p",
            source="Neyman (1949)",
            term=lambda: terms.NEYMAN_CHI_SQUARED,
            mirror=_as("pearson_chi_squared"),
        ),
        "total_variation": Entry(
            f_divergences.total_variation,
            ("tv",),
            temperature_power=1,
            formula="½·Σ abs(q-p) = 1 - Σ min(p, q)",
            range="[0, 1]",
            symmetric="yes",
            source="arXiv 2211.17192, theorem 3.5",
            term=lambda: terms.TOTAL_VARIATION,
            acceptance=f_divergences.total_variation,
            mirror=_as("total_variation"),
        ),
        "negative_acceptance": Entry(
            acceptance.negative_acceptance,
            (),
            temperature_power=1,
            formula="-Σ min(p, q)",
            range="[-1, 0]",
            symmetric="yes",
            source="arXiv 2211.17192, corollary 3.6",
            acceptance=acceptance.negative_acceptance,
            mirror=_as("negative_acceptance"),
        ),
        "negative_log_acceptance": Entry(
            acceptance.negative_log_acceptance,
            ("nla",),
            temperature_power=1,
            formula="-log Σ min(p, q)",
            symmetric="yes",
            source="LK losses, arXiv 2602.23881",
            acceptance=acceptance.negative_log_acceptance,
            mirror=_as("negative_log_acceptance"),
        ),
        "lk_hybrid": Entry(
            acceptance.lk_hybrid,
            (),
            temperature_power=1,
            formula="λ·KL(p‖q) + (1-λ)·TV, λ = exp(-rate·acceptance)",
            source="LK losses, arXiv 2602.23881",
            parameters=_one(
                "rate", default=acceptance.RATE, low=0.0, high=_INFINITY, low_included=True
            ),
            parts=(acceptance.lk_hybrid_parts, (2, 1)),
            acceptance=acceptance.lk_hybrid_parts_with_rest,
        ),
    }
)

_BY_ALIAS = {alias: name for name, entry in ENTRIES.items() for alias in (name, *entry.aliases)}


def names() -> tuple[str, ...]:
    """Returns the full names of all losses, sorted."""
    return tuple(sorted(ENTRIES))


def canonical(name: str) -> str:
    """Returns the full name of a name or alias.

    Raises:
      ValueError: if there is none; the message has the nearest name.
    """
    if name in _BY_ALIAS:
        return _BY_ALIAS[name]
    near = difflib.get_close_matches(name.lower(), _BY_ALIAS, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    candidates = (
        f"{full} ({', '.join(ENTRIES[full].aliases)})" if ENTRIES[full].aliases else full
        for full in names()
    )
    raise ValueError(f"unknown loss `{name}`; {hint}Known: {', '.join(candidates)}")
