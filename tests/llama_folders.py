"""Small Llama folders, and Llama's forward pass in NumPy and float64, by its own tensors' names."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jaxdiv.data import Tokenizer
from jaxdiv.data.tokenizer import FILE
from jaxdiv.models import Decoder, DecoderOptions, llama, safetensors_io
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


def random_decoder(**options) -> Decoder:
    """A decoder with every parameter drawn anew, so that all have an effect."""
    random = np.random.default_rng(0)

    def draw(path, x):
        noise = random.normal(size=x.shape)
        key = jax.tree_util.keystr(path)
        if "scale" in key:
            noise = 1 + 0.2 * noise
        elif "bias" not in key:
            noise = noise * x.shape[-2] ** -0.5
        return jnp.asarray(noise, x.dtype)

    build = nnx.eval_shape(lambda: Decoder(DecoderOptions(**options), rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(build)
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, params))


def write(folder: pathlib.Path, decoder: Decoder) -> Tokenizer:
    """Writes `decoder` and a tokenizer as a Llama folder."""
    folder.mkdir(exist_ok=True)
    bpe = Tokenizer.train(sentences(50), V)
    llama.write_decoder(folder, decoder, end_of_text=bpe.end_of_text, longest=64)
    bpe.save(folder / FILE)
    return bpe


def write_half(folder: pathlib.Path, dtype=jnp.bfloat16) -> dict[str, np.ndarray]:
    """Writes a Llama folder of two files in a type of two bytes, and returns its tensors."""
    decoder = make_decoder()
    write(folder, decoder)
    tensors = {name: x.astype(dtype) for name, x in llama.decoder_tensors(decoder).items()}
    (folder / safetensors_io.WEIGHTS).unlink()
    split = lambda name: f"part-{int('layers.1' in name)}.safetensors"  # noqa: E731
    for file in map(split, ("layers.0", "layers.1")):
        part = {name: x.copy() for name, x in tensors.items() if split(name) == file}
        save_file(part, folder / file)
    weight_map = {name: split(name) for name in tensors}
    (folder / safetensors_io.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def change(path: pathlib.Path, **changes) -> None:
    """Sets keys of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def norm(x, gain, sizes):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + sizes["norm_epsilon"]) * gain


def frequencies(half, base, scaling):
    """Returns the frequencies of the planes, and the factor of cosines and sines, by the papers."""
    plain, rule = base ** (-np.arange(half) / half), json.loads(scaling or "{}")
    kind, factor = rule.get("rope_type"), rule.get("factor", 1.0)
    length = rule.get("original_max_position_embeddings")
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "divisors":
        return plain / np.array(rule["divisors"]), 1.0
    if kind == "llama3":
        low, high = rule["low_freq_factor"], rule["high_freq_factor"]
        wavelengths = 2 * np.pi / plain
        part = (length / wavelengths - low) / (high - low)
        between = (1 - part) * plain / factor + part * plain
        long = np.where(wavelengths > length / low, plain / factor, between)
        return np.where(wavelengths < length / high, plain, long), 1.0
    if kind == "yarn":
        low, high = (
            half * np.log(length / (turns * 2 * np.pi)) / np.log(base) for turns in (32, 1)
        )
        low, high = max(np.floor(low), 0), min(np.ceil(high), 2 * half - 1)
        ramp = np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
        return plain * (1 - ramp) + plain / factor * ramp, 0.1 * np.log(factor) + 1
    return plain, 1.0


def rotate(x, base, scaling=""):
    """Turns component i of x [L, H] with i + H/2, as a complex number."""
    half = x.shape[-1] // 2
    turns, size = frequencies(half, base, scaling)
    z = (x[:, :half] + 1j * x[:, half:]) * size * np.exp(1j * np.outer(np.arange(len(x)), turns))
    return np.concatenate([z.real, z.imag], axis=-1)


def attention(x, tensors, prefix, sizes, window=0):
    """[L, D] through q, k, v and o of `prefix`, each [outputs, inputs], one head at a time."""
    heads, kv_heads = sizes["heads"], sizes["kv_heads"]
    base, scaling = sizes["rope_base"], sizes.get("rope_scaling", "")
    if window and sizes.get("window_rope_base"):
        base, scaling = sizes["window_rope_base"], ""
    q, k, v = (
        np.split(product(x, tensors, f"{prefix}.{name}_proj"), count, -1)
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    if sizes.get("query_key_norm"):
        q = [norm(part, tensors[f"{prefix}.q_norm.weight"], sizes) for part in q]
        k = [norm(part, tensors[f"{prefix}.k_norm.weight"], sizes) for part in k]
    scale = sizes.get("query_scale") or q[0].shape[-1] ** -0.5
    places = np.arange(len(x))
    ago = places[:, None] - places[None]
    visible = (ago >= 0) & (ago < (window or len(x)))
    mixed = []
    for i in range(heads):
        j = i * kv_heads // heads
        scores = rotate(q[i], base, scaling) @ rotate(k[j], base, scaling).T * scale
        weights = np.exp(scores) * visible
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v[j])
    return product(np.concatenate(mixed, -1), tensors, f"{prefix}.o_proj")


def product(x, tensors, name):
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)


def activate(x, name):
    if name == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


def forward(tensors, tokens, sizes):
    """The hidden states [L, D] after 0..depth layers, and the logits [L, V], of one text."""
    tensors = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
    embedding, four_norms = tensors["model.embed_tokens.weight"], sizes.get("post_norms")
    states = [embedding[tokens] * sizes.get("embedding_scale", 1)]
    windows = [int(part) for part in sizes.get("windows", "").split(",") if part] or [0]
    for i in range(sizes["depth"]):
        at, x, window = f"model.layers.{i}.", states[-1], windows[i % len(windows)]
        y = norm(x, tensors[at + "input_layernorm.weight"], sizes)
        y = attention(y, tensors, at + "self_attn", sizes, window)
        if four_norms:
            y = norm(y, tensors[at + "post_attention_layernorm.weight"], sizes)
        x = x + y
        name = "pre_feedforward_layernorm" if four_norms else "post_attention_layernorm"
        y = norm(x, tensors[f"{at}{name}.weight"], sizes)
        gate, up = (product(y, tensors, f"{at}mlp.{name}_proj") for name in ("gate", "up"))
        y = activate(gate, sizes.get("activation")) * up
        y = product(y, tensors, at + "mlp.down_proj")
        if four_norms:
            y = norm(y, tensors[at + "post_feedforward_layernorm.weight"], sizes)
        states.append(x + y)
    normed = norm(states[-1], tensors["model.norm.weight"], sizes)
    return states, normed @ tensors.get("lm_head.weight", embedding).T


def adapter_logits(tensors, hidden, head, sizes):
    """The logits [L, V] of a Kangaroo adapter on hidden states [L, D] of one text."""
    tensors = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
    hidden, head = (np.asarray(x, np.float64) for x in (hidden, head))
    y = norm(hidden, tensors["layers.0.input_layernorm.weight"], sizes)
    x = hidden + attention(y, tensors, "layers.0.self_attn", sizes)
    return norm(x, tensors["norm.weight"], sizes) @ head
