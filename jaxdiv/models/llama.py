"""Reads and writes models as transformers' folders, and reads GGUF files.

`families` says what keys of config.json mean, `_views` where tensors lie in our parameters, both
for reading and for writing.
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
from jaxdiv.models import families, safetensors_io
from jaxdiv.models.decoder import Decoder
from jaxdiv.models.gguf_file import GGUFFile, is_gguf
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.layers import AttentionOptions, DecoderOptions
from jaxdiv.models.safetensors_io import Tensors

CONFIG = "config.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FREQUENCIES = ".rotary_emb.inv_freq"  # old Llamas store them; they follow from rope_theta


class ModelFiles:
    """The files of a model: a folder with config.json and safetensors, or a GGUF file.

    Of the weights only headers are read until `read_split`.

    Attributes:
      path: of the folder or file.
      files: all files with weights, and config.json.
      options: the decoder's, in float32.
      tensors: by transformers' names.

    Raises:
      ValueError: a file is missing or damaged, the family is not known, or the model has what the
        decoder lacks; key or tensor are named.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        if is_gguf(path):
            config_path = self.path
            self.tensors: Tensors | GGUFFile = GGUFFile(path)
            self.options, _ = families.read_options(self.tensors.config(), path)
            self._offset, self.files = 0.0, self.tensors.files
        else:
            config_path = self.path / CONFIG
            config = _read_config(config_path)
            self.options, self._offset = families.read_options(config, config_path)
            self.tensors = Tensors(path, ignore=_FREQUENCIES)
            self.files = [config_path, *self.tensors.files]
        if self.options.depth > len(self.tensors.shapes):
            raise ValueError(
                f"{config_path}: `{families.SIZES['depth']}` is {self.options.depth}, more than "
                f"the {len(self.tensors.shapes)} tensors that lie beside it"
            )
        if self.options.tied_head:
            self.tensors.shapes.pop(_HEAD, None)  # a copy of the embedding

    def shapes(self, dtype: Any = jnp.float32) -> Decoder:
        """Returns the decoder with shapes as parameters, for activations of `dtype`.

        Raises ValueError for the first tensor that is missing, surplus or of another shape.
        """
        options = dataclasses.replace(self.options, dtype=dtype)
        decoder = nnx.eval_shape(lambda: Decoder(options, rngs=nnx.Rngs(0)))
        # Arrays without memory, whose views have the tensors' shapes.
        arrays = jax.tree.map(
            lambda x: np.broadcast_to(np.int8(0), x.shape), nnx.to_pure_dict(nnx.state(decoder))
        )
        views = _views(arrays, options)
        safetensors_io.check_shapes(self.tensors, {name: x.shape for name, x in views.items()})
        return decoder

    def read_split(self, dtype: Any = jnp.float32) -> tuple[Any, Any]:
        """Returns what `nnx.split` returns of the decoder, with float32 parameters.

        The parameters are NumPy arrays, since they may exceed the memory of one accelerator. Raises
        ValueError as `shapes` does, and for values that are not finite.
        """
        graphdef, params = nnx.split(self.shapes(dtype))
        arrays = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nnx.to_pure_dict(params))
        for name, view in _views(arrays, self.options).items():
            view[...] = self.tensors[name]
            if name.endswith("norm.weight"):
                view += self._offset
            if not np.isfinite(view).all():
                raise ValueError(f"{self.path}: {name} has values that are not finite")
        nnx.replace_by_pure_dict(params, arrays)
        return graphdef, params


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is not there; a model's folder has one")
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object")
    return config


def read(path: str | os.PathLike, *, dtype: Any = jnp.float32) -> Decoder:
    """Reads a folder or GGUF file as a decoder, with float32 weights whatever type is stored.

    Raises ValueError as `ModelFiles` and its `read_split`.
    """
    graphdef, params = ModelFiles(path).read_split(dtype)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def _views(params: Mapping[str, Any], options: DecoderOptions) -> dict[str, np.ndarray]:
    """Returns a decoder's parameters as a folder's tensors by name: views, to be read or filled.

    Matrices of transformers are [outputs, inputs], ours [inputs, outputs]. Our qkv and gate_up are
    several of its matrices side by side, and our layers are stacked on the first axis. The padding
    of the vocabulary has no place in a folder.
    """
    views = {
        _EMBEDDING: params["embedding"][: options.vocab_size],
        "model.norm.weight": params["norm"]["scale"],
    }
    if not options.tied_head:
        views[_HEAD] = params["head"].T[: options.vocab_size]
    mlp_norm = "pre_feedforward_layernorm" if options.post_norms else "post_attention_layernorm"
    for i in range(options.depth):
        layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        parts = {
            **_attention_views(layer, options.attention),
            f"{mlp_norm}.weight": layer["mlp_norm"]["scale"],
            **_product_views(layer["mlp"]["gate_up"], ["mlp.gate_proj", "mlp.up_proj"]),
            **_product_views(layer["mlp"]["down"], ["mlp.down_proj"]),
        }
        if options.post_norms:
            parts["post_attention_layernorm.weight"] = layer["post_attention_norm"]["scale"]
            parts["post_feedforward_layernorm.weight"] = layer["post_mlp_norm"]["scale"]
        views |= {f"model.layers.{i}.{name}": view for name, view in parts.items()}
    return views


def _attention_views(layer: Mapping[str, Any], options: AttentionOptions) -> dict[str, np.ndarray]:
    """Returns the views of a layer's first norm and its attention, as `_views` does."""
    attention = layer["attention"]
    outputs = np.array([options.heads, options.kv_heads, options.kv_heads]) * options.head_width
    names = [f"self_attn.{part}_proj" for part in "qkv"]
    views = {
        "input_layernorm.weight": layer["attention_norm"]["scale"],
        **_product_views(attention["qkv"], names, np.cumsum(outputs)[:-1]),
        **_product_views(attention["out"], ["self_attn.o_proj"]),
    }
    if options.query_key_norm:
        views["self_attn.q_norm.weight"] = attention["query_norm"]["scale"]
        views["self_attn.k_norm.weight"] = attention["key_norm"]["scale"]
    return views


def _product_views(
    product: Mapping[str, np.ndarray], names: list[str], cuts: Any = None
) -> dict[str, np.ndarray]:
    """Returns the views of one of our products, kernel and bias, as several of transformers'.

    They end at the outputs `cuts`; without these they are equally wide.
    """
    views = {}
    for kind, suffix in (("kernel", "weight"), ("bias", "bias")):
        if kind in product:
            parts = np.split(product[kind].T, len(names) if cuts is None else cuts)
            views |= {f"{name}.{suffix}": part for name, part in zip(names, parts, strict=True)}
    return views


def decoder_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """Returns the tensors of a decoder by transformers' names, without the vocabulary's padding."""
    return _views(_arrays(decoder), decoder.options)


def adapter_tensors(adapter: KangarooAdapter) -> dict[str, np.ndarray]:
    """Returns a Kangaroo adapter's tensors by the names in its authors' code."""
    arrays, attention = _arrays(adapter), adapter.attention
    parts = _attention_views(arrays, attention.options)
    views = {f"layers.0.{name}": view for name, view in parts.items()}
    return {"norm.weight": arrays["norm"]["scale"], **views}


def _arrays(model: nnx.Module) -> dict[str, Any]:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def write_decoder(
    folder: pathlib.Path, decoder: Decoder, *, end_of_text: int, longest: int
) -> None:
    """Writes a decoder as a folder of its family: config.json and safetensors.

    Args:
      folder: a folder that exists.
      decoder: the model.
      end_of_text: id of the token that ends a document.
      longest: tokens of the longest text that the model is meant for.

    Raises:
      ValueError: no family of transformers has all options of the decoder.
    """
    family, offset = families.family_of(decoder.options)
    config = {
        "architectures": [families.ARCHITECTURES[family]],
        **families.write_options(decoder.options, family),
        "max_position_embeddings": longest,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }
    tensors = {
        name: view - offset if offset and name.endswith("norm.weight") else view
        for name, view in decoder_tensors(decoder).items()
    }
    files.write_json(folder / CONFIG, config)
    safetensors_io.save(folder, tensors)


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
        "target": {key: getattr(target.options, name) for name, key in families.SIZES.items()},
    }
    tensors, vocabulary = adapter_tensors(adapter), adapter.vocabulary
    if vocabulary is not None:
        config["draft_vocab_size"] = vocabulary.size
        tensors |= {"d2t": vocabulary.offsets, "t2d": vocabulary.mask}
    files.write_json(folder / CONFIG, config)
    safetensors_io.save(folder, tensors)
