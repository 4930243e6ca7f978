"""Reads and writes models as Llama folders: config.json and safetensors.

`_SIZES`, `_NUMERICS` and `_UNSUPPORTED` say what keys of config.json mean, `_views` where tensors
lie in our parameters, both for reading and for writing.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiv import files
from jaxdiv.models import safetensors_io
from jaxdiv.models.decoder import Decoder
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.layers import DecoderOptions
from jaxdiv.models.safetensors_io import Tensors

CONFIG = "config.json"
# The decoder's options, and their keys in config.json.
_SIZES = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "vocab_size": "vocab_size",
}
_NUMERICS = {"rope_base": "rope_theta", "norm_epsilon": "rms_norm_eps"}
# Features of some Llamas that the decoder lacks: the only value that it can take.
_UNSUPPORTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FREQUENCIES = ".rotary_emb.inv_freq"  # old Llamas store them; they follow from rope_theta
_LARGEST = 2**20  # of a size: a damaged number would ask for shapes that no array can have


def read_config(folder: str | os.PathLike) -> DecoderOptions:
    """Reads the options of the decoder, in float32, from a Llama folder's config.json.

    Raises:
      ValueError: it is missing, no Llama's, or the model has what the decoder lacks; the key is
        named.
    """
    path = pathlib.Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{path} is not there; a Llama folder has one")
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object")

    def require(holds: bool, key: str, rule: str, value: Any) -> None:
        if not holds:
            raise ValueError(f"{path}: `{key}` must be {rule}, is {value!r}")

    kind = config.get("model_type")
    require(kind == "llama", "model_type", "llama", kind)
    for key, only in _UNSUPPORTED.items():
        value = config.get(key)
        require(value in (None, only), key, f"{only!r}, all that the decoder has", value)
    # The base of the rotary positions stands in one of three places.
    base = config.get("rope_theta", 10000.0)
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key) or {}
        require(isinstance(rope, dict), key, "an object", rope)
        kind = rope.get("rope_type", rope.get("type", "default"))
        require(kind == "default", key, "of type default, all that the decoder has", kind)
        base = rope.get("rope_theta", base)
    defaults = {"num_key_value_heads": config.get("num_attention_heads"), "rms_norm_eps": 1e-6}
    config = defaults | config | {"rope_theta": base}
    for key in _SIZES.values():
        value = config.get(key)
        is_size = isinstance(value, int) and 1 <= value <= _LARGEST
        require(is_size, key, f"a whole number in 1..{_LARGEST}", value)
    for key in _NUMERICS.values():
        value = config[key]
        require(isinstance(value, int | float) and value > 0, key, "a number above 0", value)
    sizes = {name: config[key] for name, key in _SIZES.items()}
    numerics = {name: float(config[key]) for name, key in _NUMERICS.items()}
    try:
        options = DecoderOptions(**sizes, **numerics)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    value, width = config.get("head_dim"), options.head_width
    rule = f"hidden_size / num_attention_heads = {width}"
    require(value in (None, width), "head_dim", rule, value)
    return options


def weight_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Returns the paths of the files with weights."""
    return Tensors(folder, ignore=_FREQUENCIES).files


def read(folder: str | os.PathLike, *, dtype: Any = jnp.float32) -> Decoder:
    """Reads a Llama folder as a decoder, with float32 weights whatever type is stored.

    Args:
      folder: with config.json and the safetensors, one or several with their index.
      dtype: of activations.

    Raises:
      ValueError: as `read_config` and `Tensors`, or a tensor is missing, surplus, of a wrong shape
        or not finite; it is named.
    """
    graphdef, params = read_split(folder, dtype=dtype)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def read_split(folder: str | os.PathLike, *, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Returns what `nnx.split` returns of the decoder that `read` reads.

    The parameters are NumPy arrays, since they may exceed the memory of one accelerator.
    """
    tensors, decoder, sources = check(folder, dtype=dtype)
    graphdef, params = nnx.split(decoder)
    arrays = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), nnx.to_pure_dict(params))
    for name, view in _views(arrays, decoder.options).items():
        view[...] = tensors[sources[name]]
        if not np.isfinite(view).all():
            raise ValueError(f"{folder}: {sources[name]} has values that are not finite")
    nnx.replace_by_pure_dict(params, arrays)
    return graphdef, params


def check(
    folder: str | os.PathLike, *, dtype: Any = jnp.float32
) -> tuple[Tensors, Decoder, dict[str, str]]:
    """Checks that `read` can read the folder; of the weights only headers are opened.

    Returns its tensors, the decoder with shapes as parameters, and by the name of each of Llama's
    tensors the name of the one to read, which for a tied head is the embedding. Raises ValueError
    as `read` does, except for values that are not finite.
    """
    options = dataclasses.replace(read_config(folder), dtype=dtype)
    path, tensors = pathlib.Path(folder) / CONFIG, Tensors(folder, ignore=_FREQUENCIES)
    if options.depth > len(tensors.shapes):
        raise ValueError(
            f"{path}: `{_SIZES['depth']}` is {options.depth}, more than the "
            f"{len(tensors.shapes)} tensors that lie beside it"
        )
    decoder = nnx.eval_shape(lambda: Decoder(options, rngs=nnx.Rngs(0)))
    # Arrays without memory, whose views have the tensors' shapes.
    arrays = jax.tree.map(
        lambda x: np.broadcast_to(np.int8(0), x.shape), nnx.to_pure_dict(nnx.state(decoder))
    )
    shapes = {name: view.shape for name, view in _views(arrays, options).items()}
    sources = {name: name for name in shapes}
    if files.read_json(path).get("tie_word_embeddings", False):
        sources[_HEAD] = _EMBEDDING
        if _HEAD not in tensors.shapes:
            del shapes[_HEAD]
    tensors.check(shapes)
    return tensors, decoder, sources


def _views(params: Mapping[str, Any], options: DecoderOptions) -> dict[str, np.ndarray]:
    """Returns a decoder's parameters as Llama's tensors by name: views, to be read or filled.

    Llama's matrices are [outputs, inputs], ours [inputs, outputs]. Our qkv and gate_up are several
    of its matrices side by side, and our layers are stacked on the first axis. The padding of the
    vocabulary has no place in a Llama.
    """
    views = {
        _EMBEDDING: params["embedding"][: options.vocab_size],
        "model.norm.weight": params["norm"]["scale"],
        _HEAD: params["head"].T[: options.vocab_size],
    }
    for i in range(options.depth):
        layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        gate, up = np.split(layer["mlp"]["gate_up"]["kernel"].T, 2)
        parts = {
            **_attention_views(layer, options.heads, options.kv_heads),
            "post_attention_layernorm": layer["mlp_norm"]["scale"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer["mlp"]["down"]["kernel"].T,
        }
        views |= {f"model.layers.{i}.{name}.weight": view for name, view in parts.items()}
    return views


def _attention_views(layer: Mapping[str, Any], heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """Returns the views of a layer's first norm and its attention, as `_views` does."""
    qkv = layer["attention"]["qkv"]["kernel"].T
    head_width = len(qkv) // (heads + 2 * kv_heads)
    query, keys, values = np.split(qkv, [heads * head_width, (heads + kv_heads) * head_width])
    return {
        "input_layernorm": layer["attention_norm"]["scale"],
        "self_attn.q_proj": query,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": values,
        "self_attn.o_proj": layer["attention"]["out"]["kernel"].T,
    }


def decoder_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """Returns Llama's tensors of a decoder, the head untied, without padding of the vocabulary."""
    return _views(_arrays(decoder), decoder.options)


def adapter_tensors(adapter: KangarooAdapter) -> dict[str, np.ndarray]:
    """Returns a Kangaroo adapter's tensors by the names in its authors' code."""
    arrays, attention = _arrays(adapter), adapter.attention
    parts = _attention_views(arrays, attention.heads, attention.kv_heads)
    views = {f"layers.0.{name}.weight": view for name, view in parts.items()}
    return {"norm.weight": arrays["norm"]["scale"], **views}


def _arrays(model: nnx.Module) -> dict[str, Any]:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def write_decoder(
    folder: pathlib.Path, decoder: Decoder, *, end_of_text: int, longest: int
) -> None:
    """Writes a decoder as a Llama folder: config.json and safetensors.

    Args:
      folder: a folder that exists.
      decoder: the model.
      end_of_text: id of the token that ends a document.
      longest: tokens of the longest text that the model is meant for.
    """
    options = decoder.options
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(options, name) for name, key in _SIZES.items()},
        "head_dim": options.head_width,
        **{key: getattr(options, name) for name, key in _NUMERICS.items()},
        **{key: _UNSUPPORTED[key] for key in ("hidden_act", "attention_bias", "mlp_bias")},
        "tie_word_embeddings": False,
        "max_position_embeddings": longest,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }
    files.write_json(folder / CONFIG, config)
    safetensors_io.save(folder, decoder_tensors(decoder))


def write_adapter(folder: pathlib.Path, adapter: KangarooAdapter, target: Decoder) -> None:
    """Writes a Kangaroo adapter: its tensors, and a config.json with its sizes and its target's."""
    attention = adapter.attention
    config = {
        "architectures": ["KangarooAdapter"],
        "model_type": "kangaroo_adapter",
        "exit_layer": adapter.exit_layer,
        "hidden_size": adapter.norm.num_features,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_width,
        "rope_theta": adapter.rope_base,
        "rms_norm_eps": adapter.norm.epsilon,
        "torch_dtype": "float32",
        "target": {key: getattr(target.options, name) for name, key in _SIZES.items()},
    }
    files.write_json(folder / CONFIG, config)
    safetensors_io.save(folder, adapter_tensors(adapter))
