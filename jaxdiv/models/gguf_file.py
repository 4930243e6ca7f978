"""Reads GGUF files as if they were Hugging Face folders: config.json's keys, and tensors by name.

Names and conventions are those of llama.cpp. Every type that the package `gguf` dequantizes is
read, one tensor at a time, from a memory map.
"""

import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from jaxdiv.models import gguf_header, rotary
from jaxdiv.models.gguf_header import TensorPlace

SUFFIX = ".gguf"
_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Names within a layer, for every family; those of norms differ where a layer has four.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LLAMA, _GEMMA3 = "llama", "gemma3"
# The transformers model type of each architecture, which decides the rest.
_MODEL_TYPES = {_LLAMA: "llama", "qwen2": "qwen2", "qwen3": "qwen3", _GEMMA3: "gemma3_text"}
# Keys of config.json, and their fields after the architecture's name.
_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "max_position_embeddings": "context_length",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_SCALING = "rope.scaling."
# Keys of `rope_scaling`, and their fields after `_SCALING`.
_SCALING_KEYS = {
    "rope_type": "type",
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
# Types that are read as they are; all others are dequantized to float32.
_TYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
_FREQUENCIES = "rope_freqs.weight"
# All Llamas from 3.1 on have these numbers, and a factor of 8 or 32.
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# What a Gemma 3 file leaves out, as llama.cpp has it.
_GEMMA3_DEFAULTS = {"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0}
_GEMMA3_27B_DEPTH = 62  # the one whose query scale is not that of its heads' width


class GGUFFile:
    """One GGUF file.

    Attributes:
      path, files: the file.
      fields: its keys and values.
      shapes: each tensor's shape in a Hugging Face folder, by its name there.
      types: each tensor's type as it is read.

    Raises:
      ValueError: the file is damaged or cut off, of an architecture or with a type of tensors that
        is not known, or the package is missing.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            import gguf
        except ImportError:
            raise ValueError(
                f"{path}: GGUF files are read by the package gguf: pip install 'jaxdiv[gguf]'"
            ) from None
        self.path = pathlib.Path(path)
        self.files = [self.path]
        self.fields, entries = gguf_header.read(path)
        self.architecture = self.fields.get("general.architecture")
        if self.architecture not in tuple(_MODEL_TYPES):  # lists have no hash
            raise ValueError(
                f"{path}: the architecture {self.architecture!r} is not known; known: "
                f"{', '.join(_MODEL_TYPES)}"
            )
        self._gguf, self._entries = gguf, {self._name(name): x for name, x in entries.items()}
        # Slices of a plain array cost less than those of a memmap.
        self._bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        for name, entry in self._entries.items():
            self._check(name, entry)
        self._divisors = self._entries.pop(_FREQUENCIES, None)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.types = {
            name: np.dtype(_TYPES.get(self._type(entry).name, np.float32))
            for name, entry in self._entries.items()
        }

    def _name(self, name: str) -> str:
        """Returns the name in a Hugging Face folder."""
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None:
            return name
        layer, part, kind = match.groups()
        if layer is None:
            return f"{_TOP[part]}.{kind}" if part in _TOP else name
        names = _LAYER | (_FOUR_NORMS if self.architecture == _GEMMA3 else {})
        return f"model.layers.{layer}.{names[part]}.{kind}" if part in names else name

    def _check(self, name: str, entry: TensorPlace) -> None:
        """Raises ValueError unless the tensor lies in the file and is of a type that is known."""
        fault = None
        try:
            block, size = self._block(entry)
            self._gguf.quants.dequantize(np.zeros((1, size), np.uint8), self._type(entry))
        except (ValueError, KeyError, NotImplementedError):
            fault = f"is of the type {entry.type} of GGML, which the package gguf can't dequantize"
        else:
            if not entry.shape or entry.shape[-1] % block:
                fault = f"is {list(entry.shape)}, in whose rows blocks of {block} don't fit"
            elif entry.start + math.prod(entry.shape) // block * size > self._bytes.size:
                fault = f"is {list(entry.shape)}, more than the file holds; is it cut off?"
        if fault:
            raise ValueError(f"{self.path}: {name} {fault}")

    def _type(self, entry: TensorPlace) -> Any:
        return self._gguf.GGMLQuantizationType(entry.type)

    def _block(self, entry: TensorPlace) -> tuple[int, int]:
        """Returns how many numbers a block of this type holds, and its bytes."""
        return self._gguf.GGML_QUANT_SIZES[self._type(entry)]

    def config(self) -> dict[str, Any]:
        """Returns the model's config.json, as transformers would write it.

        Raises ValueError, naming the field, for scaled positions that are not known.
        """
        sizes = self._fields("", _KEYS)
        if "model.embed_tokens.weight" not in self.shapes:
            raise ValueError(f"{self.path} lacks the tensor token_embd.weight")
        config = {
            "model_type": _MODEL_TYPES[self.architecture],
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "attention_bias": "model.layers.0.self_attn.o_proj.bias" in self.shapes,
            "mlp_bias": "model.layers.0.mlp.down_proj.bias" in self.shapes,
            "rope_scaling": self._rope_scaling(),
            "sliding_window": None,  # where the file has none
            **(_GEMMA3_DEFAULTS if self.architecture == _GEMMA3 else {}),
            **sizes,
        }
        heads, width = sizes.get("num_attention_heads"), sizes.get("hidden_size")
        if isinstance(heads, int) and isinstance(width, int) and heads > 0:
            head_width = sizes.get("head_dim", width // heads)
            is_27b = sizes.get("num_hidden_layers") == _GEMMA3_27B_DEPTH
            config["query_pre_attn_scalar"] = width // heads if is_27b else head_width
            name = f"{self.architecture}.rope.dimension_count"
            if self.fields.get(name, head_width) != head_width:
                raise ValueError(
                    f"{self.path}: `{name}` must be the width of a head, {head_width}, is "
                    f"{self.fields[name]!r}"
                )
        pattern = config.get("sliding_window_pattern")
        if isinstance(pattern, list):
            config["layer_types"] = [
                "sliding_attention" if slides else "full_attention" for slides in pattern
            ]
        return config

    def _fields(self, group: str, keys: Mapping[str, str]) -> dict[str, Any]:
        """Returns the architecture's fields that are there, by the keys of a config.json."""
        names = {key: f"{self.architecture}.{group}{name}" for key, name in keys.items()}
        values = {key: self.fields[name] for key, name in names.items() if name in self.fields}
        # Numbers are float32 in the file, and 1e-5 should read as such.
        return {k: float(str(np.float32(x))) if type(x) is float else x for k, x in values.items()}

    def _rope_scaling(self) -> dict[str, Any] | None:
        rule, group = self._fields(_SCALING, _SCALING_KEYS), f"{self.architecture}.{_SCALING}"
        for name in self.fields:
            part = name.removeprefix(group)
            if part != name and part not in (*_SCALING_KEYS.values(), "finetuned"):
                raise ValueError(f"{self.path}: the field {name} is not known")
        factor = self.fields.get(f"{self.architecture}.rope.scale_linear", 0.0)  # an older name
        if factor not in (0.0, 1.0):
            rule.setdefault("factor", factor)
        if rule.setdefault("rope_type", "linear") == "none" or "factor" not in rule:
            rule = None
        if self._divisors is None:
            return rule
        if rule:
            raise ValueError(f"{self.path} has both {_FREQUENCIES} and {group}factor")
        divisors = self._array(self._divisors)
        llama3 = _LLAMA3 | {"factor": float(divisors.max())}
        name = f"{self.architecture}.rope.freq_base"
        base = self.fields.get(name, 10000.0)
        if not rotary.is_positive(base):
            raise ValueError(f"{self.path}: `{name}` must be a number above 0, is {base!r}")
        plain, scaled = (
            rotary.Rotary(2 * divisors.size, base, x).frequencies()
            for x in ({"rope_type": "default"}, llama3)
        )
        if np.allclose(plain / scaled, divisors, rtol=1e-4):
            return llama3
        return {"rope_type": "divisors", "divisors": divisors.tolist()}

    def path_of(self, name: str) -> pathlib.Path:
        """Returns the file that holds a tensor."""
        return self.path

    def blocks(self, name: str) -> Iterator[tuple[int, Float32[np.ndarray, "rows ..."]]]:
        """Yields a tensor as the only block, from row 0 on."""
        yield 0, self[name]

    def __getitem__(self, name: str) -> Float32[np.ndarray, "..."]:
        """Reads a tensor as the Hugging Face folder of the model would have it, except that scales
        of Gemma's norms are whole."""
        array = self._array(self._entries[name])
        part = re.search(r"\.([qk])_proj\.", name)
        if self.architecture == _LLAMA and part:
            count = self.fields["llama.attention.head_count"]
            if part[1] == "k":
                count = self.fields.get("llama.attention.head_count_kv", count)
            # llama.cpp rotates neighbouring components, transformers the halves of a head.
            pairs = array.reshape(count, -1, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        return array

    def _array(self, entry: TensorPlace) -> Float32[np.ndarray, "..."]:
        block, size = self._block(entry)
        row = entry.shape[-1] // block * size
        end = entry.start + math.prod(entry.shape[:-1]) * row
        rows = self._bytes[entry.start : end].reshape(-1, row)
        array = self._gguf.quants.dequantize(rows, self._type(entry))
        return np.asarray(array, np.float32).reshape(entry.shape)


def is_gguf(path: str | os.PathLike) -> bool:
    """Returns True if the path is that of a GGUF file, by its ending."""
    return str(path).endswith(SUFFIX)
