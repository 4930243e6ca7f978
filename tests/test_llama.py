"""Llama folders in and out: nothing changes on the way, names mean what Llama means, bad ones are
named."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxdiv.models import KangarooAdapter, llama
from tests import llama_folders

TOKENS = np.random.default_rng(0).integers(0, llama_folders.V, (2, 12))
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def decoder():
    return llama_folders.make_decoder()


@pytest.fixture
def folder(decoder, tmp_path):
    llama_folders.write(tmp_path, decoder)
    return tmp_path


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def save(folder, tensors):
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(tensors, folder / "model.safetensors")


def test_what_goes_out_comes_back_bit_for_bit(decoder, folder):
    again = llama.read(folder)
    np.testing.assert_array_equal(again(TOKENS).logits, decoder(TOKENS).logits)
    assert again.options == decoder.options == llama.ModelFiles(folder).options
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(decoder))


def test_an_adapters_config_has_its_sizes_and_its_targets(decoder, tmp_path):
    sizes = {"width": 32, "heads": 4, "kv_heads": 1, "exit_layer": 1}
    adapter = KangarooAdapter(**sizes, **llama_folders.NUMERICS, rngs=nnx.Rngs(1))
    llama.write_adapter(tmp_path, adapter, decoder)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["target"]["vocab_size"] == llama_folders.V
    keys = ("exit_layer", "num_key_value_heads", "rms_norm_eps")
    assert [config[key] for key in keys] == [1, 1, 1e-3]


@pytest.mark.parametrize("stored", [True, False])
def test_a_tied_head_is_the_embedding(folder, stored):
    tensors = tensors_of(folder)
    if not stored:
        del tensors["lm_head.weight"]
        save(folder, tensors)
        with pytest.raises(ValueError, match=r"lacks the tensor lm_head.weight \[300, 32\]"):
            llama.read(folder)
    llama_folders.change(folder / "config.json", tie_word_embeddings=True)
    again = llama.read(folder)
    np.testing.assert_array_equal(again.head_matrix.T, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_in_several_files_becomes_float32(folder, dtype):
    tensors = {name: x.astype(dtype) for name, x in tensors_of(folder).items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for file, part in {"a.safetensors": names[::2], "b.safetensors": names[1::2]}.items():
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "other.safetensors").write_bytes(b"not of the index")
    again = llama.read(folder)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(again))} == {np.dtype("float32")}
    np.testing.assert_array_equal(again.head_matrix, tensors["lm_head.weight"].astype(np.float32).T)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"can't read .*b\.safetensors"):
        llama.ModelFiles(folder).shapes()


def test_frequencies_that_old_llamas_store_are_left_out(decoder, folder):
    stored = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save(folder, tensors_of(folder) | stored)
    np.testing.assert_array_equal(llama.read(folder)(TOKENS).logits, decoder(TOKENS).logits)


def test_what_old_configs_leave_out_has_llamas_default(folder):
    path = folder / "config.json"
    keys = ("rope_theta", "rms_norm_eps", "num_key_value_heads", "hidden_act")
    llama_folders.change(path, **dict.fromkeys(keys))
    options = llama.ModelFiles(folder).options
    assert (options.rope_base, options.norm_epsilon, options.kv_heads) == (10000.0, 1e-6, 4)
    llama_folders.change(path, rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    assert llama.ModelFiles(folder).options.rope_base == 7.0


LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
YARN = {"rope_type": "yarn", "factor": 4}


def check_refusal(folder, message):
    with pytest.raises(ValueError, match=message) as error:
        llama.ModelFiles(folder).shapes()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "gpt2", "`model_type` must be one of llama, mistral, .*, is 'gpt2'"),
        ("rope_scaling", {"rope_type": "dynamic"}, "`rope_scaling` must have a `rope_type` of"),
        ("rope_scaling", {"type": "longrope"}, "`rope_scaling` must have .*, got 'longrope'"),
        ("rope_parameters", {"rope_type": "linear"}, "`factor` of `rope_scaling` must be above 0"),
        ("rope_scaling", [1], "must be an object"),
        ("rope_scaling", {"rope_type": ["linear"]}, "`rope_scaling` must have a `rope_type` of"),
        ("rope_scaling", LLAMA3 | {"high_freq_factor": 1}, "`low_freq_factor` of .* must be below"),
        ("rope_scaling", YARN | {"mscale": "a"}, "`mscale` of `rope_scaling` must be above 0"),
        ("rope_parameters", {"full_attention": 3}, "`full_attention` must be an object, is 3"),
        (
            "rope_parameters",
            {"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
            "`rope_type` of `sliding_attention` must be default, is 'linear'",
        ),
        (
            "rope_parameters",
            {"rope_type": "default", "partial_rotary_factor": 0.25},
            "`partial_rotary_factor` must be 1.0, all that the decoder has, is 0.25",
        ),
        ("num_hidden_layers", True, r"must be a whole number in 1\.\.1048576, is True"),
        ("hidden_act", "gelu", "must be one of silu, gelu_pytorch_tanh, is 'gelu'"),
        ("head_dim", 7, "`head_width` must be even, got 7"),
        ("partial_rotary_factor", 0.5, "must be 1.0, all that the decoder has"),
        ("quantization_config", {"bits": 4}, "must be None"),
        ("rms_norm_eps", 0, "must be a number above 0, is 0"),
        ("hidden_size", None, r"must be a whole number in 1\.\.1048576, is None"),
    ],
)
def test_a_key_that_the_decoder_lacks_is_named(folder, key, value, message):
    llama_folders.change(folder / "config.json", **{key: value})
    check_refusal(folder, message if message.startswith("`") else f"`{key}` {message}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", 3, "`kv_heads` must divide `heads` = 3, got 2"),
        ("intermediate_size", 41, r"mlp.gate_proj.weight is \[40, 32\], not \[41, 32\]"),
        ("num_hidden_layers", 3, r"lacks the tensor model.layers.2.input_layernorm.weight \[32\]"),
        ("num_hidden_layers", 1, r"holds model.layers.1\..* no place for"),
        ("num_hidden_layers", 10**6, r"`num_hidden_layers` is 1000000, more than the 21 te"),
        (Q, None, rf"lacks the tensor {Q} \[32, 32\]"),
        (Q, np.zeros((32, 32), np.int8), f"{Q} is I8; known: F32, F16, BF16"),
        (Q, np.zeros((8, 32), np.float32), rf"{Q} is \[8, 32\], not \[32, 32\]"),
        ("bias", np.zeros(32, np.float32), "holds bias, which"),
    ],
)
def test_sizes_and_tensors_that_contradict_each_other_are_named(folder, key, value, message):
    if isinstance(value, int):
        llama_folders.change(folder / "config.json", **{key: value})
    else:
        tensors = tensors_of(folder) | {key: value}
        save(folder, {name: x for name, x in tensors.items() if x is not None})
    check_refusal(folder, message)


def test_a_tensor_that_is_not_finite_is_named(folder):
    tensors = tensors_of(folder)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = np.nan
    save(folder, tensors)
    with pytest.raises(ValueError, match=r"down.* not finite"):
        llama.read(folder)


def test_wrong_files_are_named(folder):
    second = folder / "second.safetensors"
    save_file({Q: np.zeros((32, 32), np.float32)}, second)
    both = f"in .*model.safetensors and in .*{second.name}"
    check_refusal(folder, f"tensor {Q} appears twice, {both}")
    second.write_bytes(b"damaged")
    check_refusal(folder, r"can't read .*second\.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "../model.safetensors"}}')
    check_refusal(folder, "must map tensors to files of its folder in `weight_map`")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    check_refusal(folder, r"holds no \*\.safetensors; other formats can carry code")
    (folder / "config.json").unlink()
    check_refusal(folder, r"config\.json is not there")
