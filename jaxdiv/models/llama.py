"""Reads and writes models as Llama folders: config.json and safetensors."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiv import files
from jaxdiv.models import llama_tensors, safetensors_io
from jaxdiv.models.decoder import Decoder, DecoderOptions
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.layers import check_heads
from jaxdiv.models.safetensors_io import Tensors

CONFIG = "config.json"
# The decoder's names of its sizes, and Llama's.
_SIZES = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "vocab_size": "vocab_size",
}
_FREQUENCIES = ".rotary_emb.inv_freq"  # old Llamas store them; they follow from rope_theta
# Features of some Llamas that the decoder lacks: the only value that it can take.
_UNSUPPORTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns the arguments of `Decoder`, except dtype and rngs, from a Llama folder's config.json.

    Raises:
      ValueError: it is missing, no Llama's, or the model has what the decoder lacks; the key is
        named.
    """
    path = pathlib.Path(folder) / CONFIG
    config = _read_object(path)
    if config.get("model_type") != "llama":
        raise ValueError(f"{path}: `model_type` must be llama, is {config.get('model_type')!r}")
    for key, value in _UNSUPPORTED.items():
        if config.get(key) not in (None, value):
            raise ValueError(
                f"{path}: `{key}` must be {value!r}, all that the decoder has, is {config[key]!r}"
            )
    config = {"num_key_value_heads": config.get("num_attention_heads"), **config}
    for key in _SIZES.values():
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise ValueError(
                f"{path}: `{key}` must be a whole number of at least 1, is {config.get(key)!r}"
            )
    sizes = {name: config[key] for name, key in _SIZES.items()}
    try:
        check_heads(sizes["width"], sizes["heads"], sizes["kv_heads"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    head_width = sizes["width"] // sizes["heads"]
    if config.get("head_dim") not in (None, head_width):
        raise ValueError(
            f"{path}: `head_dim` must be hidden_size / num_attention_heads = {head_width}, "
            f"is {config['head_dim']!r}"
        )
    numbers = {
        "rope_theta": _rope_theta(path, config),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
    }
    for key, value in numbers.items():
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{path}: `{key}` must be a number above 0, is {value!r}")
    rope_base, norm_epsilon = map(float, numbers.values())
    return sizes | {"rope_base": rope_base, "norm_epsilon": norm_epsilon}


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is not there; a Llama folder has one")
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object")
    return config


def _rope_theta(path: pathlib.Path, config: Mapping[str, Any]) -> Any:
    """Returns the base of the rotary positions, which stands in one of three places."""
    base = config.get("rope_theta", 10000.0)
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(
                f"{path}: `{key}` must be of type default, all that the decoder has, is {kind!r}"
            )
        base = rope.get("rope_theta", base)
    return base


def weight_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Returns the paths of the files with weights."""
    return Tensors(folder, ignore=_FREQUENCIES).files


def check(folder: str | os.PathLike) -> tuple[dict[str, Any], bool, Tensors]:
    """Checks that `read` can read the folder; of the weights only headers are opened.

    Returns the decoder's arguments, whether its head is tied, and its tensors. Raises ValueError
    as `read` does, except for values that are not finite.
    """
    arguments, path = read_config(folder), pathlib.Path(folder) / CONFIG
    tied = bool(_read_object(path).get("tie_word_embeddings", False))
    tensors = Tensors(folder, ignore=_FREQUENCIES)
    # A damaged number would ask for the shapes of billions of tensors.
    if arguments["depth"] > len(tensors.shapes):
        raise ValueError(
            f"{path}: `{_SIZES['depth']}` is {arguments['depth']}, more than the "
            f"{len(tensors.shapes)} tensors that lie beside it"
        )
    expected = llama_tensors.shapes(arguments)
    if tied and llama_tensors.HEAD not in tensors.shapes:
        del expected[llama_tensors.HEAD]
    tensors.check(expected)
    return arguments, tied, tensors


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
    arguments, tied, tensors = check(folder)
    parameters = llama_tensors.parameters(arguments, tensors, tied=tied)
    for path, value in jax.tree_util.tree_leaves_with_path(parameters):
        if not np.isfinite(value).all():
            raise ValueError(
                f"{folder}: {jax.tree_util.keystr(path)} of the weights has values that are not "
                "finite"
            )
    options = DecoderOptions(**arguments, dtype=dtype)
    empty = nnx.eval_shape(lambda: Decoder(options, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(empty)
    nnx.replace_by_pure_dict(params, parameters)
    return graphdef, params


def decoder_config(decoder: Decoder, *, end_of_text: int, longest: int) -> dict[str, Any]:
    """Returns the config.json that describes a decoder as a Llama.

    Args:
      decoder: the model.
      end_of_text: id of the token that ends a document.
      longest: tokens of the longest text that the model is meant for.
    """
    arguments = llama_tensors.sizes(decoder)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: arguments[name] for name, key in _SIZES.items()},
        "head_dim": decoder.head_width,
        "rope_theta": arguments["rope_base"],
        "rms_norm_eps": arguments["norm_epsilon"],
        **{key: _UNSUPPORTED[key] for key in ("hidden_act", "attention_bias", "mlp_bias")},
        "tie_word_embeddings": False,
        "max_position_embeddings": longest,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }


def adapter_config(adapter: KangarooAdapter, teacher: Decoder) -> dict[str, Any]:
    """Returns the config.json of a Kangaroo adapter: its sizes, and those of its target."""
    attention = adapter.attention
    return {
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
        "target": {key: llama_tensors.sizes(teacher)[name] for name, key in _SIZES.items()},
    }


def write(folder: pathlib.Path, config: Mapping, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes config.json and the safetensors."""
    files.write_json(folder / CONFIG, dict(config))
    safetensors_io.save(folder, tensors)
