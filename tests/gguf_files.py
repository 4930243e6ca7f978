"""Small GGUF files, written by the package gguf with the names and conventions of llama.cpp."""

import json
import pathlib
from typing import Any

import gguf
import numpy as np
import tokenizers
from gguf import GGMLQuantizationType as Type

from jaxdiv.models import llama
from tests import llama_folders
from tests.fixtures_data import sentences

SIZES = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 64, "vocab_size": 300}
_CODES = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}
_CODES[list] = "add_array"


def write(
    path: pathlib.Path,
    architecture: str,
    fields: dict[str, Any],
    tensors: dict[str, tuple[np.ndarray, Type | None]],
) -> None:
    """Writes a file of fields, and of tensors in their types; None stores one as it is."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        getattr(writer, _CODES[type(value)])(name, value)
    for name, (x, kind) in tensors.items():
        if kind in (None, Type.F32):  # as it is
            writer.add_tensor(name, x)
        elif kind == Type.F16:
            writer.add_tensor(name, x.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sizes(architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model's sizes."""
    values = {
        "block_count": options["depth"],
        "context_length": 64,
        "embedding_length": options["width"],
        "feed_forward_length": options["mlp_width"],
        "attention.head_count": options["heads"],
        "attention.head_count_kv": options["kv_heads"],
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": options.get("rope_base", 10000.0),
    }
    if "head_width" in options:
        values["attention.key_length"] = options["head_width"]
    return {f"{architecture}.{name}": x for name, x in values.items()}


def convert(
    architecture: str, tensors: dict[str, np.ndarray], options: dict[str, Any], kind: Type
) -> dict[str, tuple[np.ndarray, Type]]:
    """A model's tensors as llama.cpp's converter stores them: matrices in a type, the rest whole.

    The tensors have transformers' names, but scales of norms are whole as in llama.cpp.
    """
    number = next(i for i, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, options["depth"])
    converted = {}
    for name, x in tensors.items():
        x = np.ascontiguousarray(x)
        if architecture == "llama" and ".q_proj." in name:
            x = permute(x, options["heads"])
        if architecture == "llama" and ".k_proj." in name:
            x = permute(x, options["kv_heads"])
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        converted[new] = x, kind if x.ndim > 1 else Type.F32
    return converted


def permute(x: np.ndarray, heads: int) -> np.ndarray:
    """Puts the two components that rotate together side by side, head by head."""
    new = np.empty_like(x)
    width = len(x) // heads
    for row in range(len(x)):
        head, place = divmod(row, width)
        half, plane = divmod(place, width // 2)
        new[head * width + 2 * plane + half] = x[row]
    return new


def tokenizer_fields(bpe, pre: str) -> dict[str, Any]:
    """The fields of a byte-level BPE, from the JSON of `tokenizers`."""
    settings = json.loads(bpe.to_str())
    model, added = settings["model"], {x["id"] for x in settings["added_tokens"]}
    tokens = [bpe.id_to_token(i) for i in range(bpe.get_vocab_size())]
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if i in added else 1 for i in range(len(tokens))],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "eos_token_id": min(added),
        "bos_token_id": max(added),
    }
    return {f"tokenizer.ggml.{name}": x for name, x in fields.items()}


def llama_parts() -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, Type]]]:
    """The fields and tensors of a small Llama with its tokenizer, of SmolLM's kind."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    options = {"initial_alphabet": alphabet, "special_tokens": ["<|end|>"], "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, **options)
    bpe.train_from_iterator(sentences(20), trainer)
    options = SIZES | {"vocab_size": bpe.get_vocab_size(), "rope_base": 555.0}
    tensors = llama.decoder_tensors(llama_folders.random_decoder(**options))
    fields = sizes("llama", options) | tokenizer_fields(bpe, "smollm")
    return fields, convert("llama", tensors, options, Type.Q8_0)
