"""Small Llama folders, and Llama's forward pass in NumPy and float64, by its own tensors' names."""

import json
import pathlib

import jax
import numpy as np
from flax import nnx

from jaxdiv.data import Tokenizer
from jaxdiv.data.tokenizer import FILE
from jaxdiv.models import Decoder, DecoderOptions, llama
from tests.fixtures_data import sentences

V = 300
SIZES = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 40, "vocab_size": V}
NUMERICS = {"rope_base": 333.0, "norm_epsilon": 1e-3}


def make_decoder(seed: int = 0, **changes) -> Decoder:
    """A decoder whose norms have gains of their own."""
    options = DecoderOptions(**SIZES, **NUMERICS, **changes)
    decoder = nnx.jit(lambda: Decoder(options, rngs=nnx.Rngs(seed)))()
    norms = (decoder.norm, decoder.layers.attention_norm, decoder.layers.mlp_norm)
    for i, norm in enumerate(norms):
        norm.scale[...] += 0.3 * jax.random.normal(jax.random.key(i), norm.scale.shape)
    return decoder


def write(folder: pathlib.Path, decoder: Decoder) -> Tokenizer:
    """Writes `decoder` and a tokenizer as a Llama folder."""
    folder.mkdir(exist_ok=True)
    bpe = Tokenizer.train(sentences(50), V)
    llama.write_decoder(folder, decoder, end_of_text=bpe.end_of_text, longest=64)
    bpe.save(folder / FILE)
    return bpe


def change(path: pathlib.Path, **changes) -> None:
    """Sets keys of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def norm(x, gain, sizes):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + sizes["norm_epsilon"]) * gain


def rotate(x, base):
    """Turns component i of x [L, H] with i + H/2, as a complex number."""
    half = x.shape[-1] // 2
    angles = np.outer(np.arange(len(x)), base ** (-np.arange(half) / half))
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def attention(x, tensors, prefix, sizes):
    """[L, D] through q, k, v and o of `prefix`, each [outputs, inputs], one head at a time."""
    heads, kv_heads, base = sizes["heads"], sizes["kv_heads"], sizes["rope_base"]
    q, k, v = (
        np.split(x @ tensors[f"{prefix}.{name}_proj.weight"].T, count, -1)
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    mixed = []
    for i in range(heads):
        j = i * kv_heads // heads
        scores = rotate(q[i], base) @ rotate(k[j], base).T / np.sqrt(q[i].shape[-1])
        weights = np.exp(scores) * np.tri(len(x))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v[j])
    return np.concatenate(mixed, -1) @ tensors[f"{prefix}.o_proj.weight"].T


def forward(tensors, tokens, sizes):
    """The hidden states [L, D] after 0..depth layers, and the logits [L, V], of one text."""
    tensors = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
    states = [tensors["model.embed_tokens.weight"][tokens]]
    for i in range(sizes["depth"]):
        at, x = f"model.layers.{i}.", states[-1]
        y = norm(x, tensors[at + "input_layernorm.weight"], sizes)
        x = x + attention(y, tensors, at + "self_attn", sizes)
        y = norm(x, tensors[at + "post_attention_layernorm.weight"], sizes)
        gate, up = (y @ tensors[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ tensors[at + "mlp.down_proj.weight"].T
        states.append(x)
    normed = norm(states[-1], tensors["model.norm.weight"], sizes)
    return states, normed @ tensors["lm_head.weight"].T


def adapter_logits(tensors, hidden, head, sizes):
    """The logits [L, V] of a Kangaroo adapter on hidden states [L, D] of one text."""
    tensors = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
    hidden, head = (np.asarray(x, np.float64) for x in (hidden, head))
    y = norm(hidden, tensors["layers.0.input_layernorm.weight"], sizes)
    x = hidden + attention(y, tensors, "layers.0.self_attn", sizes)
    return norm(x, tensors["norm.weight"], sizes) @ head
