"""Folders and GGUF files of every family give transformers' logits and greedy tokens."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import speculative
from jaxdiv.models import llama

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

V = 99
TOKENS = np.random.default_rng(0).integers(3, V, (2, 40))
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": V,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE = {"rope_theta": 5000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
MODELS = {
    "llama": ("Llama", {"rope_parameters": ROPE}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3 | ROPE, "tie_word_embeddings": True}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0} | ROPE}),
    "yarn": ("Llama", {"rope_parameters": YARN | ROPE}),
    "yarn with mscale": (
        "Llama",
        {"rope_parameters": YARN | ROPE | {"mscale": 0.7, "mscale_all_dim": 0.9}},
    ),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "qwen2": ("Qwen2", {"rope_parameters": ROPE, "tie_word_embeddings": True}),
    "qwen2 with windows": ("Qwen2", {"rope_parameters": ROPE, **WINDOWS}),
    "qwen3": ("Qwen3", {"rope_parameters": ROPE, "head_dim": 16}),
    "qwen3 with biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "mistral": ("Mistral", {"rope_parameters": ROPE, "sliding_window": 9}),
    "mistral without windows": ("Mistral", {"sliding_window": None}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 20, "num_hidden_layers": 7},
    ),
}


def make_model(name):
    family, changes = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | changes))
    kind = "Gemma3" if family == "Gemma3Text" else family
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, x in model.named_parameters():
            # At their own initial values all logits are near 0, gains are 1 and biases 0.
            noise = 0.3 * torch.randn_like(x)
            x.add_(noise) if "norm" in key or key.endswith("bias") else x.mul_(8)
    return model


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_its_models_logits_and_greedy_text(name, tmp_path):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    expected, decoder = logits_of(model), llama.read(tmp_path)
    assert np.std(expected) > 0.1
    logits = nnx.jit(lambda decoder: decoder(TOKENS).logits)(decoder)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    half = llama.read(tmp_path, dtype=jnp.bfloat16)
    with torch.no_grad():
        reference = model.to(torch.bfloat16)(torch.tensor(TOKENS)).logits.float().numpy()
    distance = np.abs(np.float32(half(TOKENS).logits) - expected).max()
    assert distance < 3 * np.abs(reference - expected).max()
    model.float()
    prompt = torch.tensor(TOKENS[:1, :8])
    greedy = model.generate(prompt, max_new_tokens=64, do_sample=False)[0, 8:].numpy()
    options = {"max_tokens": 64, "temperature": 0.0}
    decoded = speculative.decode(decoder, None, TOKENS[:1, :8].tolist(), **options)
    differs = np.flatnonzero(decoded.tokens[0] != greedy)
    if differs.size:  # only where the two likeliest tokens are as good as equal
        text = np.concatenate([TOKENS[0, :8], greedy[: differs[0]]])[None]
        best, second = np.sort(np.asarray(decoder(text).logits[0, -1]))[:-3:-1]
        assert best - second < 1e-4 * np.abs(expected).max()
    again = tmp_path / "again"
    again.mkdir()
    llama.write_decoder(again, decoder, end_of_text=1, longest=256)
    written = transformers.AutoModelForCausalLM.from_pretrained(again).eval()
    np.testing.assert_allclose(logits_of(written), expected, rtol=0, atol=1e-4)
