"""The map between parameters of a decoder or adapter and tensors of a Llama.

Llama's matrices are [outputs, inputs], ours [inputs, outputs]. Our qkv and gate_up are several
of its matrices side by side, and our layers are stacked on the first axis.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxdiv.models.decoder import Decoder
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.safetensors_io import Tensors

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class _Part(NamedTuple):
    """One parameter of a layer, and the Llama tensors that it joins.

    Attributes:
      path: below its layer.
      outputs: each tensor's name and number of outputs.
      inputs: of each tensor; None for vectors.
    """

    path: tuple[str, ...]
    outputs: dict[str, int]
    inputs: int | None

    def tensors(self, parameter: np.ndarray | jax.Array, prefix: str) -> dict[str, np.ndarray]:
        """Splits a parameter ([D] or [inputs, outputs]) into Llama's tensors."""
        cuts = np.cumsum(list(self.outputs.values()))[:-1]
        pieces = np.split(np.asarray(parameter), cuts, axis=-1)
        return {f"{prefix}{name}.weight": x.T for name, x in zip(self.outputs, pieces, strict=True)}


def _attention_parts(width: int, heads: int, kv_heads: int) -> list[_Part]:
    kv_width = width // heads * kv_heads
    qkv = {"self_attn.q_proj": width, "self_attn.k_proj": kv_width, "self_attn.v_proj": kv_width}
    return [
        _Part(("attention_norm", "scale"), {"input_layernorm": width}, None),
        _Part(("attention", "qkv", "kernel"), qkv, width),
        _Part(("attention", "out", "kernel"), {"self_attn.o_proj": width}, width),
    ]


def _layer_parts(arguments: Mapping[str, Any]) -> list[_Part]:
    width, mlp_width = arguments["width"], arguments["mlp_width"]
    gate_up = {"mlp.gate_proj": mlp_width, "mlp.up_proj": mlp_width}
    return [
        *_attention_parts(width, arguments["heads"], arguments["kv_heads"]),
        _Part(("mlp_norm", "scale"), {"post_attention_layernorm": width}, None),
        _Part(("mlp", "gate_up", "kernel"), gate_up, width),
        _Part(("mlp", "down", "kernel"), {"mlp.down_proj": width}, mlp_width),
    ]


def sizes(decoder: Decoder) -> dict[str, Any]:
    """Returns the arguments that the decoder was built with, except dtype and rngs."""
    attention = decoder.layers.attention
    return {
        "depth": decoder.depth,
        "width": decoder.head.shape[0],
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "mlp_width": decoder.layers.mlp.down.kernel.shape[-2],
        "vocab_size": decoder.vocab_size,
        "rope_base": decoder.rope_base,
        "norm_epsilon": decoder.norm.epsilon,
    }


def shapes(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a Llama of these sizes, by name."""
    width, vocab_size = arguments["width"], arguments["vocab_size"]
    shapes = {EMBEDDING: (vocab_size, width), NORM: (width,), HEAD: (vocab_size, width)}
    for i in range(arguments["depth"]):
        for part in _layer_parts(arguments):
            inputs = () if part.inputs is None else (part.inputs,)
            for name, outputs in part.outputs.items():
                shapes[f"model.layers.{i}.{name}.weight"] = (outputs, *inputs)
    return shapes


def parameters(arguments: Mapping[str, Any], tensors: Tensors, *, tied: bool) -> dict[str, Any]:
    """Returns a decoder's parameters, nested by name; `tied` takes the embedding as the head."""
    embedding = tensors[EMBEDDING]
    head = embedding if tied else tensors[HEAD]
    layers: dict[str, Any] = {}
    for part in _layer_parts(arguments):
        stacked = [
            np.concatenate(
                [tensors[f"model.layers.{i}.{name}.weight"].T for name in part.outputs], axis=-1
            )
            for i in range(arguments["depth"])
        ]
        *parents, leaf = part.path
        parent = functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, layers)
        parent[leaf] = np.stack(stacked)
    return {
        "embedding": embedding,
        "layers": layers,
        "norm": {"scale": tensors[NORM]},
        "head": head.T,
    }


def decoder_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """Returns Llama's tensors of a decoder, the head untied, without padding of the vocabulary."""
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(decoder, nnx.Param)))
    tensors = {
        EMBEDDING: params["embedding"][: decoder.vocab_size],
        HEAD: params["head"].T[: decoder.vocab_size],
        NORM: params["norm"]["scale"],
    }
    for part in _layer_parts(sizes(decoder)):
        for i, layer in enumerate(functools.reduce(operator.getitem, part.path, params["layers"])):
            tensors |= part.tensors(layer, f"model.layers.{i}.")
    return tensors


def adapter_tensors(adapter: KangarooAdapter) -> dict[str, np.ndarray]:
    """Returns a Kangaroo adapter's tensors by the names in its authors' code."""
    params = nnx.to_pure_dict(nnx.state(adapter, nnx.Param))
    tensors = {"norm.weight": np.asarray(params["norm"]["scale"])}
    attention = adapter.attention
    for part in _attention_parts(adapter.norm.num_features, attention.heads, attention.kv_heads):
        parameter = functools.reduce(operator.getitem, part.path, params)
        tensors |= part.tensors(parameter, "layers.0.")
    return tensors
