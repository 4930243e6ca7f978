"""Small Llama folders, and what their tensors mean, in NumPy and by Llama's own names."""

import json
import pathlib

import jax
import numpy as np
from flax import nnx

from jaxdiv.data import Tokenizer
from jaxdiv.data.tokenizer import FILE
from jaxdiv.models import Decoder, llama, llama_tensors
from tests.fixtures_data import sentences

V, WIDTH, HEADS, KV_HEADS, DEPTH, BASE, EPSILON = 300, 32, 4, 2, 2, 333.0, 1e-3


def make_decoder(seed: int = 0) -> Decoder:
    """A decoder whose norms have gains of their own."""
    sizes = {
        "depth": DEPTH,
        "width": WIDTH,
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "mlp_width": 40,
        "vocab_size": V,
    }
    decoder = Decoder(**sizes, rope_base=BASE, norm_epsilon=EPSILON, rngs=nnx.Rngs(seed))
    for i, norm in enumerate(
        (decoder.norm, decoder.layers.attention_norm, decoder.layers.mlp_norm)
    ):
        norm.scale[...] += 0.3 * jax.random.normal(jax.random.key(i), norm.scale.shape)
    return decoder


def write(folder: pathlib.Path, decoder: Decoder) -> Tokenizer:
    """Writes `decoder` and a tokenizer as a Llama folder."""
    folder.mkdir(exist_ok=True)
    bpe = Tokenizer.train(sentences(50), V)
    config = llama.decoder_config(decoder, end_of_text=bpe.end_of_text, longest=64)
    llama.write(folder, config, llama_tensors.decoder_tensors(decoder))
    bpe.save(folder / FILE)
    return bpe


def change(path: pathlib.Path, **changes) -> None:
    """Sets keys of a JSON file; None removes one."""
    held = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


def norm(x, gain):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * gain


def _rotated(x):
    """[L, H] turned as Llama turns: component i with i + H/2."""
    length, width = x.shape
    angles = np.arange(length)[:, None] * BASE ** (-np.arange(0, width, 2) / width)
    a, b = x[:, : width // 2], x[:, width // 2 :]
    return np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
    )


def attention(x, tensors, prefix, heads=HEADS, kv_heads=KV_HEADS):
    """[L, D] through q, k, v and o of `prefix`, each [outputs, inputs]."""
    q, k, v = (
        np.split(x @ tensors[f"{prefix}.{name}_proj.weight"].T, n, -1)
        for name, n in _heads(heads, kv_heads)
    )
    mixed = []
    for i in range(heads):
        j = i * kv_heads // heads
        scores = np.exp(_rotated(q[i]) @ _rotated(k[j]).T / np.sqrt(q[i].shape[-1])) * np.tri(
            len(x)
        )
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v[j])
    return np.concatenate(mixed, -1) @ tensors[f"{prefix}.o_proj.weight"].T


def _heads(heads, kv_heads):
    return ("q", heads), ("k", kv_heads), ("v", kv_heads)


def logits(tensors, tokens):
    """[L, V] of a Llama's tensors in float64."""
    x = tensors["model.embed_tokens.weight"][tokens]
    for i in range(DEPTH):
        at = f"model.layers.{i}."
        x = x + attention(
            norm(x, tensors[at + "input_layernorm.weight"]), tensors, at + "self_attn"
        )
        y = norm(x, tensors[at + "post_attention_layernorm.weight"])
        gate, up = (y @ tensors[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ tensors[at + "mlp.down_proj.weight"].T
    return norm(x, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T
