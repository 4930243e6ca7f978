"""Rotary positions: plain frequencies, or scaled for texts longer than a model was trained on.

A config holds the rule as JSON text, with the keys of transformers' `rope_parameters`
(`rope_scaling` before its version 5).
"""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The numbers that each rule needs, besides those with a default.
_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
    "divisors": (),  # one for each frequency, as a GGUF file has them
}
_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")  # yarn's


class Rotary(NamedTuple):
    """Rotary positions of attention heads.

    Attributes:
      head_width: H, even.
      base: of the geometric series of wavelengths (RoFormer, arXiv 2104.09864, section 3.2.2).
      rule: by which the frequencies are scaled, from `parse`.
    """

    head_width: int
    base: float
    rule: Mapping[str, Any] = MappingProxyType({"rope_type": "default"})

    def frequencies(self) -> Float[Array, " planes"]:
        """Computes the angle a position by which each plane of a head turns.

        Source: linear: arXiv 2306.15595; llama3: the code of Llama 3.1; yarn: arXiv 2309.00071,
          section 3.
        """
        width, base, rule = self
        plain = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        match rule["rope_type"]:
            case "linear":
                return plain / rule["factor"]
            case "divisors":
                return plain / jnp.asarray(rule["divisors"], jnp.float32)
            case "llama3":
                low, high = rule["low_freq_factor"], rule["high_freq_factor"]
                turns = plain * (rule["original_max_position_embeddings"] / (2 * math.pi))
                whole = jnp.clip((turns - low) / (high - low), 0, 1)
                return (1 - whole) * plain / rule["factor"] + whole * plain
            case "yarn":
                divided = jnp.clip(_ramp(width, base, rule), 0, 1)
                return plain * (1 - divided) + plain / rule["factor"] * divided
        return plain

    def rotations(
        self, positions: Int[Array, "b L"]
    ) -> tuple[Float[Array, "b 1 L H"], Float[Array, "b 1 L H"]]:
        """Computes cosines and sines by which `layers.rotate` turns the planes of a head."""
        angles = positions.astype(jnp.float32)[:, None, :, None]
        angles = angles * self.frequencies()[None, None, None, :]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        if self.rule["rope_type"] == "yarn":
            size = _yarn_size(self.rule)
            cos, sin = size * cos, size * sin
        return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def parse(text: str, head_width: int) -> dict[str, Any]:
    """Reads a rule from JSON text; empty text is the plain series.

    Raises ValueError for text that is no JSON object, an unknown rule, or numbers that it lacks.
    """
    try:
        rule = json.loads(text or "{}")
        kind = rule.setdefault("rope_type", "default")
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"`rope_scaling` must be a JSON object, got {text[:60]!r}") from None
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise ValueError(
            f"`rope_scaling` must have a `rope_type` of {', '.join(_NUMBERS)}, got {kind!r}"
        )
    optional = [key for key in _OPTIONAL if kind == "yarn" and rule.get(key) is not None]
    for key in (*_NUMBERS[kind], *optional):
        if not is_positive(rule.get(key)):
            raise ValueError(
                f"`{key}` of `rope_scaling` must be above 0 and finite, got {rule.get(key)!r}"
            )
    if kind == "llama3" and rule["low_freq_factor"] >= rule["high_freq_factor"]:
        raise ValueError("`low_freq_factor` of `rope_scaling` must be below `high_freq_factor`")
    if kind == "divisors":
        divisors, planes = rule.get("divisors"), head_width // 2
        is_list = isinstance(divisors, list) and len(divisors) == planes
        if not is_list or not all(map(is_positive, divisors)):
            raise ValueError(
                f"`divisors` of `rope_scaling` must be {planes} numbers above 0, one a frequency"
            )
    return rule


def is_positive(value: Any) -> bool:
    """Returns True for a number above 0 that is finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def _ramp(head_width: int, base: float, rule: Mapping[str, Any]) -> Float[Array, " planes"]:
    """Returns yarn's ramp over the planes: below 0 they keep their frequency, above 1 it is divided
    by the factor."""

    def plane(turns):  # that turns this often within the original length
        length = rule["original_max_position_embeddings"]
        return head_width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = plane(rule.get("beta_fast") or 32), plane(rule.get("beta_slow") or 1)
    if rule.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_width - 1)
    return (jnp.arange(head_width // 2) - low) / (high - low or 1e-3)


def _yarn_size(rule: Mapping[str, Any]) -> float:
    """Returns the factor of yarn's cosines and sines."""

    def grown(weight):
        return 0.1 * weight * math.log(rule["factor"]) + 1 if rule["factor"] > 1 else 1.0

    if rule.get("attention_factor") is not None:
        return rule["attention_factor"]
    if rule.get("mscale") and rule.get("mscale_all_dim"):
        return grown(rule["mscale"]) / grown(rule["mscale_all_dim"])
    return grown(1.0)
