"""Families of models: what a config.json of transformers says of a decoder, and the reverse.

Both layouts are read: `rope_theta` with `rope_scaling`, as transformers wrote before version 5, and
`rope_parameters`.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiv.models.layers import DecoderOptions
from jaxdiv.models.rotary import is_positive

GEMMA3 = "gemma3_text"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    GEMMA3: "Gemma3ForCausalLM",
}
# The decoder's options, and their keys in config.json.
SIZES = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "vocab_size": "vocab_size",
}
# Features that the decoder lacks: the only value that their key can have.
_UNSUPPORTED = {
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LARGEST = 2**20  # of a size: a damaged number would ask for shapes that no array can have
_WINDOW = 4096  # where config.json has no `sliding_window`; null is none
_WRITTEN_ELSEWHERE = ("dtype", "padded_vocabulary", "vocab_size")
_SLIDING, _FULL = "sliding_attention", "full_attention"
Require = Callable[[bool, str, str, Any], None]


def read_options(config: Mapping[str, Any], path: Any) -> tuple[DecoderOptions, float]:
    """Returns the decoder's options, in float32, and what its norms' scales are stored less of.

    Args:
      config: of config.json.
      path: its path, for messages.

    Raises:
      ValueError: the family is not known, or the model has what the decoder lacks; the key is
        named.
    """

    def require(holds: bool, key: str, rule: str, value: Any) -> None:
        if not holds:
            raise ValueError(f"{path}: `{key}` must be {rule}, is {value!r}")

    family = config.get("model_type")
    is_known = family in tuple(ARCHITECTURES)
    require(is_known, "model_type", f"one of {', '.join(ARCHITECTURES)}", family)
    for key, only in _UNSUPPORTED.items():
        value = config.get(key)
        require(value in (None, only), key, f"{only!r}, all that the decoder has", value)
    config = {"num_key_value_heads": config.get("num_attention_heads"), **config}
    sizes = {}
    optional = {} if config.get("head_dim") is None else {"head_width": "head_dim"}
    for name, key in (SIZES | optional).items():
        sizes[name] = value = config.get(key)
        require(_is_size(value), key, f"a whole number in 1..{_LARGEST}", value)
    key = "hidden_activation" if family == GEMMA3 else "hidden_act"
    activation = config.get(key) or ("gelu_pytorch_tanh" if family == GEMMA3 else "silu")
    require(activation in tuple(_ACTIVATIONS), key, f"one of {', '.join(_ACTIVATIONS)}", activation)
    epsilon = config.get("rms_norm_eps", 1e-6)
    require(is_positive(epsilon), "rms_norm_eps", "a number above 0", epsilon)
    options = {
        **sizes,
        "norm_epsilon": float(epsilon),
        "activation": _ACTIVATIONS[activation],
        "attention_bias": "qkv" if family == "qwen2" else "",
        "query_key_norm": family in ("qwen3", GEMMA3),
        "tied_head": bool(config.get("tie_word_embeddings", family == GEMMA3)),
        # The other families have no such biases, whatever their config says.
        "mlp_bias": family == "llama" and bool(config.get("mlp_bias", False)),
        **_windows(config, family, require),
        **_rotary(config, family, require),
    }
    if config.get("attention_bias") and family not in ("mistral", "qwen2"):
        options["attention_bias"] = "qkvo"
    if family == GEMMA3:
        scalar = config.get("query_pre_attn_scalar", 256)
        require(is_positive(scalar), "query_pre_attn_scalar", "a number above 0", scalar)
        options |= {"post_norms": True, "query_scale": float(scalar) ** -0.5}
        options["embedding_scale"] = math.sqrt(sizes["width"])
    try:
        return DecoderOptions(**options), float(family == GEMMA3)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _windows(config: Mapping[str, Any], family: str, require: Require) -> dict[str, str]:
    """Returns the option `windows`: which layers see a sliding window, and how long it is."""
    depth, window = config["num_hidden_layers"], config.get("sliding_window", _WINDOW)
    types = None if family == "mistral" else config.get("layer_types")  # all of Mistral's slide
    if family == "llama":
        return {}
    if family.startswith("qwen") and not config.get("use_sliding_window", False):
        return {}
    if window is None and not (isinstance(types, list) and _SLIDING in types):
        return {}
    require(_is_size(window), "sliding_window", f"a whole number in 1..{_LARGEST}", window)
    if types is not None:
        kinds = (_SLIDING, _FULL)
        is_list = isinstance(types, list) and len(types) == depth and all(x in kinds for x in types)
        require(is_list, "layer_types", f"a list of {depth} {_SLIDING} or {_FULL}", types)
        slides = [kind == _SLIDING for kind in types]
    elif family == "mistral":
        slides = [True] * depth
    elif family == GEMMA3:
        pattern = config.get("sliding_window_pattern", 6)
        rule = f"a whole number in 1..{_LARGEST}"
        require(_is_size(pattern), "sliding_window_pattern", rule, pattern)
        slides = [(i + 1) % pattern != 0 for i in range(depth)]
    else:
        first = config.get("max_window_layers", 28)
        require(isinstance(first, int), "max_window_layers", "a whole number", first)
        slides = [i >= first for i in range(depth)]
    windows = [window if slide else 0 for slide in slides]
    # The shortest list that repeats.
    period = next(n for n in range(1, depth + 1) if windows == (windows[:n] * depth)[:depth])
    return {"windows": ",".join(map(str, windows[:period])) if any(windows) else ""}


def _rotary(config: Mapping[str, Any], family: str, require: Require) -> dict[str, Any]:
    """Returns the options of rotary positions, which stand in one of several places."""

    def read(holder, key):
        value = holder.get(key)
        require(value is None or isinstance(value, dict), key, "an object", value)
        return value or {}

    rope, local = read(config, "rope_parameters"), {}
    if _FULL in rope or _SLIDING in rope:
        rope, local = read(rope, _FULL), read(rope, _SLIDING)
        kind = local.get("rope_type", "default")
        require(kind == "default", f"rope_type` of `{_SLIDING}", "default", kind)
    rule = {**rope, **read(config, "rope_scaling")}
    turned = rule.pop("partial_rotary_factor", 1.0)
    require(turned in (None, 1.0), "partial_rotary_factor", "1.0, all that the decoder has", turned)
    base = rule.pop("rope_theta", None)
    if base is None:
        base = config.get("rope_theta", 1e6 if family == GEMMA3 else 10000.0)
    require(is_positive(base), "rope_theta", "a number above 0", base)
    options = {"rope_base": float(base)}
    rule = {"rope_type": rule.pop("type", "default")} | rule  # `type` is an older key
    if rule["rope_type"] != "default":
        if rule["rope_type"] in ("llama3", "yarn"):
            longest = config.get("max_position_embeddings")
            rule.setdefault("original_max_position_embeddings", longest)
        options["rope_scaling"] = json.dumps(rule, sort_keys=True)
    if family == GEMMA3:
        base = local.get("rope_theta", config.get("rope_local_base_freq", 10000.0))
        require(is_positive(base), "rope_local_base_freq", "a number above 0", base)
        options["window_rope_base"] = float(base)
    return options


def family_of(options: DecoderOptions) -> tuple[str, float]:
    """Returns the family that has a decoder's options, and what it stores scales of norms less of.

    Raises:
      ValueError: none has them all.
    """
    if '"divisors"' in options.rope_scaling:
        raise ValueError(
            "no family of transformers has a decoder's rope_scaling by divisors, which a GGUF file "
            "can have"
        )
    windows = set(options.layer_windows)
    if options.post_norms:
        family = GEMMA3
    elif options.query_key_norm:
        family = "qwen3"
    elif options.attention_bias == "qkv":
        family = "qwen2"
    elif windows != {0}:
        family = "mistral"
    else:
        family = "llama"
    again, offset = read_options(write_options(options, family), family)
    differences = [
        field.name
        for field in dataclasses.fields(options)
        if field.name not in _WRITTEN_ELSEWHERE
        and getattr(again, field.name) != getattr(options, field.name)
    ]
    if differences:
        raise ValueError(
            f"no family of transformers has a decoder's {', '.join(differences)}; it is nearest to "
            f"{family}"
        )
    return family, offset


def write_options(options: DecoderOptions, family: str) -> dict[str, Any]:
    """Returns the keys of config.json that describe a decoder of this family."""
    windows = options.layer_windows
    config = {
        "model_type": family,
        **{key: getattr(options, name) for name, key in SIZES.items()},
        "head_dim": options.head_width,
        "rms_norm_eps": options.norm_epsilon,
        "rope_theta": options.rope_base,
        "rope_scaling": json.loads(options.rope_scaling or "null"),
        "tie_word_embeddings": options.tied_head,
        "attention_bias": options.attention_bias == "qkvo",
        "mlp_bias": options.mlp_bias,
    }
    activation = next(key for key, name in _ACTIVATIONS.items() if name == options.activation)
    config["hidden_activation" if family == GEMMA3 else "hidden_act"] = activation
    if family != "llama":
        config["sliding_window"] = max(windows) or None
        config["layer_types"] = [_SLIDING if window else _FULL for window in windows]
        config["use_sliding_window"] = any(windows)
    if family == GEMMA3:
        scale = options.query_scale or options.head_width**-0.5
        config["query_pre_attn_scalar"] = round(scale**-2)  # transformers takes whole numbers
        config["rope_local_base_freq"] = options.window_rope_base
    return config
