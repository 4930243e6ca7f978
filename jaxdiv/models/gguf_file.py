"""Reads GGUF files as if they were Hugging Face folders: config.json's keys, and tensors by name.

The format and its names are those of llama.cpp (docs/gguf.md there). Every type that the package
`gguf` dequantizes is read, one tensor at a time, from a memory map.
"""

import os
import pathlib
import re
from typing import Any

import numpy as np
from jaxtyping import Float32

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
# The transformers model type of each architecture, which decides the rest.
_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "max_position_embeddings": "context_length",
}
_FREQUENCIES = "rope_freqs.weight"
# What a Gemma 3 file leaves out, as llama.cpp has it.
_GEMMA3 = {"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0}


class GGUFFile:
    """One GGUF file.

    Attributes:
      path, files: the file.
      fields: its keys and values.
      shapes: each tensor's shape in a Hugging Face folder, by its name there.

    Raises:
      ValueError: the file is damaged or cut off, of an architecture that is not known, or the
        package is missing.
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
        try:
            reader = gguf.GGUFReader(self.path)
        except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise ValueError(f"can't read {path} as a GGUF file: {error}") from None
        self._dequantize = gguf.quants.dequantize
        self.fields = {
            name: field.contents() for name, field in reader.fields.items() if field.types
        }
        self.architecture = self.fields.get("general.architecture")
        if self.architecture not in _MODEL_TYPES:
            raise ValueError(
                f"{path}: the architecture {self.architecture!r} is not known; known: "
                f"{', '.join(_MODEL_TYPES)}"
            )
        self._tensors = {self._name(tensor.name): tensor for tensor in reader.tensors}
        self._divisors = self._tensors.pop(_FREQUENCIES, None)
        self.shapes = {
            name: tuple(int(size) for size in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def _name(self, name: str) -> str:
        """Returns the name in a Hugging Face folder."""
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None:
            return name
        layer, part, kind = match.groups()
        if layer is None:
            return f"{_TOP[part]}.{kind}" if part in _TOP else name
        names = _LAYER | (_FOUR_NORMS if self.architecture == "gemma3" else {})
        return f"model.layers.{layer}.{names[part]}.{kind}" if part in names else name

    def config(self) -> dict[str, Any]:
        """Returns the model's config.json, as transformers would write it."""
        values = {
            key: self.fields[f"{self.architecture}.{name}"]
            for key, name in _SIZES.items()
            if f"{self.architecture}.{name}" in self.fields
        }
        config = {
            "model_type": _MODEL_TYPES[self.architecture],
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            **values,
        }
        if self.architecture == "gemma3":
            config = _GEMMA3 | config
        if self._divisors is not None:
            config["rope_scaling"] = {
                "rope_type": "divisors",
                "divisors": self._array(self._divisors).tolist(),
            }
        return config

    def path_of(self, name: str) -> pathlib.Path:
        """Returns the file that holds a tensor."""
        return self.path

    def __getitem__(self, name: str) -> Float32[np.ndarray, "..."]:
        """Reads a tensor as the Hugging Face folder of the model would have it."""
        array = self._array(self._tensors[name])
        if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = self.fields["llama.attention.head_count" + ("_kv" if "k_proj" in name else "")]
            # llama.cpp rotates neighbouring components, transformers the halves of a head.
            pairs = array.reshape(heads, -1, 2, array.shape[-1])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        return array

    def _array(self, tensor) -> Float32[np.ndarray, "..."]:
        try:
            array = self._dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{self.path}: can't read the tensor {tensor.name}: {error}") from None
        return np.asarray(array, np.float32).reshape(tuple(reversed(tensor.shape.tolist())))


def is_gguf(path: str | os.PathLike) -> bool:
    """Returns True if the path is that of a GGUF file, by its ending."""
    return str(path).endswith(SUFFIX)
