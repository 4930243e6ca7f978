"""Which of a Llama's tensors a decoder's or an adapter's parameters are.

Llama's matrices are [outputs, inputs], ours [inputs, outputs]; our qkv and gate_up are several of
its side by side, and our layers are stacked on the first axis.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxdiv.models.decoder import Decoder
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.safetensors_io import Tensors

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class _Part(NamedTuple):
    """One parameter of ours: the path below its layer, Llama's tensors with their outputs, and the
    inputs, if any."""

    path: tuple[str, ...]
    outputs: dict[str, int]
    inputs: int | None


def sizes(decoder: Decoder) -> dict[str, Any]:
    """The arguments that made the decoder, all but dtype and rngs."""
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


def shapes(arguments: Mapping) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama of these sizes, and its shape."""
    width, vocab_size = arguments["width"], arguments["vocab_size"]
    made = {EMBEDDING: (vocab_size, width), NORM: (width,), HEAD: (vocab_size, width)}
    for i in range(arguments["depth"]):
        for part in _block(arguments):
            for name, outputs in part.outputs.items():
                made[f"model.layers.{i}.{name}.weight"] = (outputs,) + (
                    () if part.inputs is None else (part.inputs,)
                )
    return made


def parameters(arguments: Mapping, tensors: Tensors, *, tied: bool) -> dict[str, Any]:
    """A decoder's parameters, nested by name; `tied` takes the embedding for the head too."""
    embedding = tensors[EMBEDDING]
    head = embedding if tied else tensors[HEAD]
    layers = {}
    for part in _block(arguments):
        stacked = [_ours(part, tensors, f"model.layers.{i}.") for i in range(arguments["depth"])]
        _put(layers, part.path, np.stack(stacked))
    return {
        "embedding": embedding,
        "layers": layers,
        "norm": {"scale": tensors[NORM]},
        "head": head.T,
    }


def _ours(part, tensors, prefix):
    return np.concatenate([tensors[f"{prefix}{name}.weight"].T for name in part.outputs], axis=-1)


def _put(tree, path, leaf):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def decoder_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """Llama's tensors of a decoder, whose head is untied; without what pads its vocabulary."""
    params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    rows = {EMBEDDING: params["embedding"], HEAD: np.asarray(params["head"]).T}
    made = {name: x[: decoder.vocab_size] for name, x in rows.items()} | {
        NORM: params["norm"]["scale"]
    }
    for part in _block(sizes(decoder)):
        for i, layer in enumerate(_at(params["layers"], part.path)):
            made |= _theirs(part, layer, f"model.layers.{i}.")
    return {name: np.asarray(x) for name, x in made.items()}


def adapter_tensors(adapter: KangarooAdapter) -> dict[str, np.ndarray]:
    """Tensors of a Kangaroo adapter by the names of its authors' code, as if it were a Llama's
    first layer."""
    params, width = nnx.to_pure_dict(nnx.state(adapter, nnx.Param)), adapter.norm.num_features
    made = {"norm.weight": np.asarray(params["norm"]["scale"])}
    for part in _attention(width, adapter.attention.heads, adapter.attention.kv_heads):
        made |= _theirs(part, _at(params, part.path), "layers.0.")
    return made


def _theirs(part, ours, prefix):
    cuts = np.cumsum(list(part.outputs.values()))[:-1]
    pieces = np.split(np.asarray(ours), cuts, axis=-1)
    return {f"{prefix}{name}.weight": x.T for name, x in zip(part.outputs, pieces, strict=True)}


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _block(arguments):
    width, mlp_width = arguments["width"], arguments["mlp_width"]
    return [
        *_attention(width, arguments["heads"], arguments["kv_heads"]),
        _Part(("mlp_norm", "scale"), {"post_attention_layernorm": width}, None),
        _Part(
            ("mlp", "gate_up", "kernel"),
            {"mlp.gate_proj": mlp_width, "mlp.up_proj": mlp_width},
            width,
        ),
        _Part(("mlp", "down", "kernel"), {"mlp.down_proj": width}, mlp_width),
    ]


def _attention(width, heads, kv_heads):
    kv_width = width // heads * kv_heads
    qkv = {"self_attn.q_proj": width, "self_attn.k_proj": kv_width, "self_attn.v_proj": kv_width}
    return [
        _Part(("attention_norm", "scale"), {"input_layernorm": width}, None),
        _Part(("attention", "qkv", "kernel"), qkv, width),
        _Part(("attention", "out", "kernel"), {"self_attn.o_proj": width}, width),
    ]
