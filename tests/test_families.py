"""Families of decoders: each option against a float64 forward pass, and folders of each family."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import speculative
from jaxdiv.models import Decoder, KangarooAdapter, families, llama
from tests import llama_folders

V, L = 60, 24
SIZES = {"depth": 4, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 48, "vocab_size": V}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED = {
    "linear": {"factor": 4.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "divisors": {"divisors": [1.0, 1.5, 2.0, 8.0]},
}
SCALED = {
    kind: json.dumps({"rope_type": kind, **rule}, sort_keys=True) for kind, rule in SCALED.items()
}
GEMMA3 = {
    "head_width": 16,
    "tied_head": True,
    "windows": "5,5,0",
    "window_rope_base": 50.0,
    "rope_scaling": SCALED["linear"],
    "query_key_norm": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "query_scale": 0.25,
    "embedding_scale": 32**0.5,
}
OPTIONS = {
    **{kind: {"rope_scaling": rule} for kind, rule in SCALED.items()},
    "biased llama": {"attention_bias": "qkvo", "mlp_bias": True, "tied_head": True},
    "qwen2": {"attention_bias": "qkv", "windows": "0,0,7,7"},
    "qwen3": {"query_key_norm": True, "head_width": 12},
    "mistral": {"windows": "6"},
    "gemma3": GEMMA3,
}


@functools.cache
def make_decoder(name):
    return llama_folders.random_decoder(**SIZES, **OPTIONS[name])


TOKENS = np.random.default_rng(1).integers(0, V, (2, L))


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_equals_the_reference(name):
    decoder = make_decoder(name)
    output = nnx.jit(lambda model: model(TOKENS, exit_layer=2))(decoder)
    sizes, tensors = dataclasses.asdict(decoder.options), llama.decoder_tensors(decoder)
    for row, tokens in enumerate(TOKENS):
        states, logits = llama_folders.forward(tensors, tokens, sizes)
        np.testing.assert_allclose(output.hidden[row], states[2], rtol=0, atol=2e-5)
        np.testing.assert_allclose(output.logits[row], logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["biased llama", "gemma3"])
def test_bfloat16_prefers_the_same_tokens(name):
    """It does so where the two best are further apart than its rounding."""
    decoder, draw = make_decoder(name), np.random.default_rng(2)
    options = dataclasses.replace(decoder.options, dtype=jnp.bfloat16)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(options, rngs=nnx.Rngs(0))))
    half = nnx.merge(graphdef, nnx.state(decoder))
    tokens = draw.integers(0, V, (8, 64))
    logits, halves = (nnx.jit(lambda model: model(tokens).logits)(x) for x in (decoder, half))
    second, best = np.moveaxis(np.sort(logits, axis=-1)[..., -2:], -1, 0)
    clear = best - second > 2**-4 * best
    assert clear.mean() > 0.5
    agrees = np.argmax(logits, axis=-1) == np.argmax(halves, axis=-1)
    assert agrees[clear].mean() >= 0.999
    assert np.abs(halves - logits).max() > 1e-3, "it is computed in bfloat16"


@pytest.mark.parametrize(
    "name",
    ["gemma3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "mistral"))],
)
def test_decoding_with_a_cache_is_that_of_whole_passes(name):
    """Greedy, plainly, by a chain and by a tree, beyond the windows."""
    target = make_decoder(name)
    adapter = KangarooAdapter(width=32, heads=4, kv_heads=2, exit_layer=2, rngs=nnx.Rngs(3))
    prompts, options = TOKENS[:, :9].tolist(), {"max_tokens": 14, "temperature": 0.0}
    plain = speculative.decode(target, None, prompts, **options).tokens
    for row, prompt in zip(plain, prompts, strict=True):
        text = np.concatenate([prompt, row])
        greedy = np.argmax(target(text[None]).logits[0], axis=-1)
        np.testing.assert_array_equal(row, greedy[len(prompt) - 1 : -1])
    tree = speculative.parse("0,1,00,01,000")
    for drafts in ({"gamma": 3}, {"gamma": 3, "tree": tree}):
        decoded = speculative.decode(target, adapter, prompts, **options, **drafts)
        np.testing.assert_array_equal(decoded.tokens, plain)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("divisors", "gemma3")])
def test_a_folder_gives_the_decoder_back(name, tmp_path):
    decoder = make_decoder(name)
    llama.write_decoder(tmp_path, decoder, end_of_text=1, longest=64)
    again = llama.read(tmp_path)
    assert again.options == decoder.options
    before, after = (nnx.to_pure_dict(nnx.state(x)) for x in (decoder, again))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_gemmas_norms_are_stored_less_1(tmp_path):
    decoder = make_decoder("gemma3")
    llama.write_decoder(tmp_path, decoder, end_of_text=1, longest=64)
    again = llama.read(tmp_path)
    np.testing.assert_allclose(again.norm.scale[...], decoder.norm.scale[...], rtol=1e-6)


def read_options(**changes):
    config = families.write_options(make_decoder("mistral").options, "mistral") | changes
    config = {key: value for key, value in config.items() if value != "left out"}
    return families.read_options(config, "config.json")[0]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text", "mistral"])
def test_a_window_that_the_config_leaves_out_is_of_4096_tokens(family):
    keys = {"model_type": family, "use_sliding_window": True, "max_window_layers": 0}
    keys |= {"layer_types": "left out", "hidden_activation": "gelu_pytorch_tanh"}
    assert "4096" in read_options(sliding_window="left out", **keys).windows
    assert not read_options(sliding_window=None, **keys).windows
    types = ["sliding_attention"] * make_decoder("mistral").options.depth
    if family != "mistral":  # which has no such key
        with pytest.raises(ValueError, match="`sliding_window` must be a whole number"):
            read_options(**keys | {"sliding_window": None, "layer_types": types})


@pytest.mark.parametrize(
    "changes", [{"model_type": ["llama"]}, {"hidden_act": {"name": "silu"}}, {"sliding_window": []}]
)
def test_a_key_of_another_type_is_refused_by_name(changes):
    with pytest.raises(ValueError, match=f"config.json: `{next(iter(changes))}` must be"):
        read_options(**changes)


@pytest.mark.parametrize(
    ("option", "value"),
    [("windows", "6,0"), ("attention_bias", "qkvo"), ("mlp_bias", True)],
)
def test_what_transformers_would_not_read_back_is_not_written(option, value):
    options = dataclasses.replace(make_decoder("mistral").options, **{option: value})
    with pytest.raises(ValueError, match=f"no family of transformers has .*{option}"):
        families.family_of(options)


def test_a_decoder_of_no_family_is_not_written(tmp_path):
    options = dataclasses.replace(make_decoder("mistral").options, query_key_norm=True)
    options = dataclasses.replace(options, embedding_scale=2.0)
    message = "no family of transformers has a decoder's embedding_scale; it is nearest to qwen3"
    with pytest.raises(ValueError, match=message):
        families.family_of(options)
