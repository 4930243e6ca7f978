"""Llama folders are those of transformers, in and out: same logits, same tokens."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv.models import llama
from tests import llama_folders
from tests.fixtures_data import sentences

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

V = llama_folders.V
TOKENS = np.random.default_rng(0).integers(0, V, (2, 40))
PLAIN = {"num_attention_heads": 4, "num_key_value_heads": 4}
VARIANTS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "base": {"rope_theta": 500.0},
    "epsilon": {"rms_norm_eps": 1e-2},
}
VARIANTS["all"] = VARIANTS["grouped"] | VARIANTS["tied"]
VARIANTS["all"] |= {"rope_theta": 777.0, "rms_norm_eps": 1e-3}


def make_theirs(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": V}
    config = transformers.LlamaConfig(**sizes, **(PLAIN | changes))
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            # At their own initial values all logits are near 0, and gains are 1.
            x.mul_(8) if "norm" not in name else x.add_(0.3 * torch.randn_like(x))
    return model


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def assert_alike(decoder, reference):
    assert np.std(reference) > 0.1
    np.testing.assert_allclose(decoder, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_llama_gives_the_logits_it_gave(variant, tmp_path):
    reference = make_theirs(**VARIANTS[variant])
    reference.save_pretrained(tmp_path)
    assert_alike(llama.read(tmp_path)(TOKENS).logits, logits_of(reference))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_and_several_files_are_read(dtype, tmp_path):
    half = make_theirs(**VARIANTS["grouped"]).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path, max_shard_size="20KB")
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_alike(llama.read(tmp_path)(TOKENS).logits, logits_of(reference))


def test_a_decoder_gives_its_logits_and_its_tokenizer_its_tokens(tmp_path):
    decoder = llama_folders.make_decoder(1)
    bpe = llama_folders.write(tmp_path, decoder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(reference) is transformers.LlamaForCausalLM
    assert_alike(decoder(TOKENS).logits, logits_of(reference))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    text = sentences(9)[7] + "\n\té def f(): pass"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == bpe.encode(text)
    assert tokenizer.eos_token_id == reference.config.eos_token_id == bpe.end_of_text


def test_it_drafts_for_a_target(tmp_path):
    bpe = llama_folders.write(tmp_path, llama_folders.make_decoder(1))
    target = make_theirs(eos_token_id=bpe.end_of_text)
    assistant = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt, greedy = torch.tensor([bpe.encode(sentences(1)[0])]), {"do_sample": False}
    alone = target.generate(prompt, max_new_tokens=16, **greedy)
    assisted = target.generate(prompt, max_new_tokens=16, assistant_model=assistant, **greedy)
    assert alone.tolist() == assisted.tolist()


def test_what_the_decoder_lacks_is_what_changes_a_llamas_logits(tmp_path):
    """Every key that is refused matters: a model that differs in it alone is another."""
    plain = logits_of(make_theirs())
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    for i, changes in enumerate(
        ({"rope_scaling": scaled}, {"hidden_act": "gelu"}, {"attention_bias": True})
    ):
        model, folder = make_theirs(**changes), tmp_path / str(i)
        model.save_pretrained(folder)
        assert changes.get("attention_bias") or np.abs(logits_of(model) - plain).max() > 1e-2
        name = next(iter(changes)) if i else "rope_(parameters|scaling)"
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            llama.read(folder)
        assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_bfloat16_activations_stay_near(tmp_path):
    reference = make_theirs()
    reference.save_pretrained(tmp_path)
    decoder = llama.read(tmp_path, dtype=jnp.bfloat16)(TOKENS).logits
    expected = logits_of(reference)
    assert np.abs(np.asarray(decoder) - expected).max() < 0.1 * np.abs(expected).max()
