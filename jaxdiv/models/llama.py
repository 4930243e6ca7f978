"""Reads and writes models as transformers' folders, and reads GGUF files.

`families` says what keys of config.json mean, `_places` where tensors lie in our parameters, both
for reading and for writing.
"""

import dataclasses
import functools
import math
import operator
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxdiv import files
from jaxdiv.models import families, safetensors_io
from jaxdiv.models.decoder import Decoder
from jaxdiv.models.gguf_file import GGUFFile, is_gguf
from jaxdiv.models.kangaroo import KangarooAdapter
from jaxdiv.models.layers import AttentionOptions, DecoderOptions
from jaxdiv.models.safetensors_io import Tensors

CONFIG = "config.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS = ("embedding",)  # the parameter whose rows are tokens, as transformers has it
_ALIGNMENT = 64  # bytes, as XLA aligns arrays
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
        views = {name: place.view(arrays) for name, place in _places(options).items()}
        safetensors_io.check_shapes(self.tensors, {name: x.shape for name, x in views.items()})
        return decoder

    def read_split(
        self,
        dtype: Any = jnp.float32,
        *,
        parameters: str = "float32",
        shardings: Callable[[Any], Any] | None = None,
        advance: Callable[[], None] = lambda: None,
        part: str | None = None,
    ) -> tuple[Any, Any]:
        """Returns what `nnx.split` returns of the decoder.

        The files are read once, in blocks, and each block goes to the devices' shards at once, so
        that the host holds little more than the shards of its own devices.

        Args:
          dtype: of activations.
          parameters: their type, or `stored` for the type of the tensors; scales of norms are
            float32.
          shardings: maps the parameters' shapes to their shardings; None for one device.
          advance: is called after each tensor.
          part: the only one of the decoder's parameters that is read, such as `head`; None for all.

        Raises:
          ValueError: as `shapes` does, and for values that are not finite.
        """
        graphdef, params = nnx.split(self.shapes(dtype))
        params = {part: params[part]} if part else params
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        tensors: dict[tuple[str, ...], dict[str, _Place]] = {}
        for name, place in _places(self.options).items():
            tensors.setdefault(place.path, {})[name] = place

        def read(path, leaf, sharding):
            places = tensors[tuple(entry.key for entry in path if hasattr(entry, "key"))]
            dtype = _type(self.tensors, places, parameters)
            return self._read(places, leaf.shape, dtype, sharding, advance)

        spread = shardings(params) if shardings else jax.tree.map(lambda _: here, params)
        return graphdef, jax.tree_util.tree_map_with_path(read, params, spread)

    def _read(
        self,
        places: Mapping[str, "_Place"],
        shape: tuple[int, ...],
        dtype: Any,
        sharding: jax.sharding.Sharding,
        advance: Callable[[], None],
    ) -> jax.Array:
        """Reads the tensors of one of our parameters into its shards on the local devices."""
        indices = {
            device: tuple(range(*part.indices(n)) for part, n in zip(index, shape, strict=True))
            for device, index in sharding.addressable_devices_indices_map(shape).items()
        }
        shards = {index: _aligned(index, dtype) for index in indices.values()}
        for name, place in places.items():
            for first, block in self.tensors.blocks(name):
                if not _is_finite(block):
                    raise ValueError(f"{self.path}: {name} has values that are not finite")
                if self._offset and place.is_norm:
                    block = np.float32(block) + np.float32(self._offset)
                for index, shard in shards.items():
                    place.fill(shard, index, first, block)
            advance()
        arrays = [jax.device_put(shards[index], device) for device, index in indices.items()]
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _type(tensors: Any, places: Mapping[str, "_Place"], parameters: str) -> Any:
    """Returns the type of the parameter that holds these tensors."""
    if any(place.is_norm for place in places.values()):
        return np.dtype(np.float32)
    stored = functools.reduce(jnp.promote_types, (tensors.types[name] for name in places))
    return stored if parameters == "stored" else jnp.dtype(parameters)


def _aligned(index: tuple[range, ...], dtype: Any) -> np.ndarray:
    """Returns zeros of the index's shape, which a CPU device takes over without a copy."""
    shape = tuple(map(len, index))
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _is_finite(values: Float[np.ndarray, "..."]) -> bool:
    """Returns whether all values are finite, by their bits: ml_dtypes' own test is slow."""
    kind = f"u{values.dtype.itemsize}"
    exponent = np.array(np.inf, values.dtype).view(kind)
    return not ((values.view(kind) & exponent) == exponent).any()


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
    return nnx.merge(*ModelFiles(path).read_split(dtype))


class _Place(NamedTuple):
    """The place of a tensor in our parameters.

    Matrices of transformers are [outputs, inputs], ours [inputs, outputs]; its embedding is as
    ours. Our qkv and gate_up are several of its matrices side by side, and our layers are stacked
    on the first axis.

    Attributes:
      path: of the parameter.
      outputs: the tensor's rows among the parameter's outputs.
      layer: on the first axis, if the parameter has layers.
    """

    path: tuple[str, ...]
    outputs: slice = slice(None)
    layer: int | None = None

    @property
    def is_norm(self) -> bool:
        """True for the scale of a norm."""
        return self.path[-1] == "scale"

    def view(self, params: Mapping[str, Any]) -> np.ndarray:
        """Returns the tensor as a view of the parameter's array."""
        array = functools.reduce(operator.getitem, self.path, params)
        array = array if self.layer is None else array[self.layer]
        return (array if self.path == _ROWS else array.T)[self.outputs]

    def fill(
        self, shard: np.ndarray, index: tuple[range, ...], first: int, block: np.ndarray
    ) -> None:
        """Writes what the shard at `index` of the parameter has of the tensor's rows `first`..."""
        if self.layer is not None:
            layers, *index = index
            if self.layer not in layers:
                return
            shard = shard[self.layer - layers.start]
        if self.path != _ROWS:
            shard, index = shard.T, index[::-1]
        first += self.outputs.start or 0
        rows, *inputs = index
        start, stop = max(first, rows.start), min(first + len(block), rows.stop)
        if start < stop:
            part = block[start - first : stop - first]
            columns = (slice(span.start, span.stop) for span in inputs)
            shard[start - rows.start : stop - rows.start] = part[:, *columns]


def _places(options: DecoderOptions) -> dict[str, _Place]:
    """Returns where each tensor of a folder lies in a decoder's parameters, by its name.

    The padding of the vocabulary has no place in a folder.
    """
    tokens = slice(0, options.vocab_size)
    places = {_EMBEDDING: _Place(_ROWS, tokens), "model.norm.weight": _Place(("norm", "scale"))}
    if not options.tied_head:
        places[_HEAD] = _Place(("head",), tokens)
    mlp_norm = "pre_feedforward_layernorm" if options.post_norms else "post_attention_layernorm"
    norms = {mlp_norm: "mlp_norm"}
    if options.post_norms:
        norms["post_attention_layernorm"] = "post_attention_norm"
        norms["post_feedforward_layernorm"] = "post_mlp_norm"
    gate_up = {"mlp.gate_proj": options.mlp_width, "mlp.up_proj": options.mlp_width}
    layer = {
        **_attention_places(options.attention),
        **{f"{name}.weight": _Place((path, "scale")) for name, path in norms.items()},
        **_product_places(("mlp", "gate_up"), gate_up, options.mlp_bias),
        **_product_places(("mlp", "down"), {"mlp.down_proj": options.width}, options.mlp_bias),
    }
    for i in range(options.depth):
        for name, (path, outputs, _) in layer.items():
            places[f"model.layers.{i}.{name}"] = _Place(("layers", *path), outputs, i)
    return places


def _attention_places(options: AttentionOptions) -> dict[str, _Place]:
    """Returns the places of a layer's first norm and its attention, as `_places` does."""
    heads = {"q": options.heads, "k": options.kv_heads, "v": options.kv_heads}
    qkv = {f"self_attn.{part}_proj": n * options.head_width for part, n in heads.items()}
    out, biases = {"self_attn.o_proj": options.width}, options.attention_bias
    places = {
        "input_layernorm.weight": _Place(("attention_norm", "scale")),
        **_product_places(("attention", "qkv"), qkv, "qkv" in biases),
        **_product_places(("attention", "out"), out, biases == "qkvo"),
    }
    if options.query_key_norm:
        places["self_attn.q_norm.weight"] = _Place(("attention", "query_norm", "scale"))
        places["self_attn.k_norm.weight"] = _Place(("attention", "key_norm", "scale"))
    return places


def _product_places(
    path: tuple[str, ...], outputs: Mapping[str, int], has_bias: bool
) -> dict[str, _Place]:
    """Returns the places of one of our products, as several of transformers' with so many outputs
    each."""
    places, start = {}, 0
    for name, count in outputs.items():
        columns, start = slice(start, start + count), start + count
        places[f"{name}.weight"] = _Place((*path, "kernel"), columns)
        if has_bias:
            places[f"{name}.bias"] = _Place((*path, "bias"), columns)
    return places


def decoder_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """Returns the tensors of a decoder by transformers' names, without the vocabulary's padding."""
    arrays = _arrays(decoder)
    return {name: place.view(arrays) for name, place in _places(decoder.options).items()}


def adapter_tensors(adapter: KangarooAdapter) -> dict[str, np.ndarray]:
    """Returns a Kangaroo adapter's tensors by the names in its authors' code."""
    arrays, attention = _arrays(adapter), adapter.attention
    places = _attention_places(attention.options)
    views = {f"layers.0.{name}": place.view(arrays) for name, place in places.items()}
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
        "torch_dtype": decoder.embedding[...].dtype.name,
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
