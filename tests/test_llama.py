"""Llama folders in and out: nothing changes on the way, names mean what Llama means, bad ones are
named."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxdiv.models import KangarooAdapter, llama, llama_tensors
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


def keep(folder, tensors):
    save_file(
        {name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors"
    )


def in_float64(tensors):
    return {name: np.asarray(x, np.float64) for name, x in tensors.items()}


def test_what_goes_out_comes_back_bit_for_bit(decoder, folder):
    again = llama.read(folder)
    np.testing.assert_array_equal(again(TOKENS).logits, decoder(TOKENS).logits)
    assert llama_tensors.sizes(again) == llama_tensors.sizes(decoder) == llama.read_config(folder)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(decoder))


def test_the_tensors_are_a_llamas(decoder, folder):
    tensors = in_float64(tensors_of(folder))
    expected = llama_folders.logits(tensors, TOKENS[0])
    np.testing.assert_allclose(decoder(TOKENS).logits[0], expected, atol=1e-4)


def test_an_adapters_tensors_are_a_llamas_first_attention(decoder):
    made = {"width": llama_folders.WIDTH, "heads": 4, "kv_heads": 1, "exit_layer": 1}
    adapter = KangarooAdapter(
        **made, rope_base=llama_folders.BASE, norm_epsilon=llama_folders.EPSILON, rngs=nnx.Rngs(1)
    )
    tensors = in_float64(llama_tensors.adapter_tensors(adapter))
    output = decoder(TOKENS, exit_layer=1)
    x, head = (np.asarray(a, np.float64) for a in (output.hidden[0], output.head))
    normed = llama_folders.norm(x, tensors["layers.0.input_layernorm.weight"])
    x = x + llama_folders.attention(normed, tensors, "layers.0.self_attn", kv_heads=1)
    expected = llama_folders.norm(x, tensors["norm.weight"]) @ head
    np.testing.assert_allclose(adapter(TOKENS, output)[0], expected, atol=1e-4)
    config = llama.adapter_config(adapter, decoder)
    assert (config["exit_layer"], config["num_key_value_heads"], config["rms_norm_eps"]) == (
        1,
        1,
        1e-3,
    )
    assert config["target"]["vocab_size"] == llama_folders.V


@pytest.mark.parametrize("stored", [True, False])
def test_a_tied_head_is_the_embedding(folder, stored):
    tensors = tensors_of(folder)
    if not stored:
        del tensors["lm_head.weight"]
        keep(folder, tensors)
        with pytest.raises(ValueError, match=r"lacks the tensor lm_head.weight \[300, 32\]"):
            llama.read(folder)
    llama_folders.change(folder / "config.json", tie_word_embeddings=True)
    again = llama.read(folder)
    np.testing.assert_array_equal(again.head[...].T, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_in_several_files_becomes_float32(folder, dtype):
    tensors = {name: x.astype(dtype) for name, x in tensors_of(folder).items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in halves.items():
        save_file({name: tensors[name] for name in mine}, folder / file)
    index = {"weight_map": {name: file for file, mine in halves.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "other.safetensors").write_bytes(b"not of the index")
    again = llama.read(folder)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(again))} == {np.dtype("float32")}
    np.testing.assert_array_equal(again.head[...], tensors["lm_head.weight"].astype(np.float32).T)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"can't read .*b\.safetensors"):
        llama.check(folder)


def test_frequencies_that_old_llamas_store_are_left_out(decoder, folder):
    keep(
        folder,
        tensors_of(folder)
        | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)},
    )
    np.testing.assert_array_equal(llama.read(folder)(TOKENS).logits, decoder(TOKENS).logits)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2"}, "`model_type` must be llama, is 'gpt2'"),
        (
            {"rope_scaling": {"rope_type": "llama3"}},
            "`rope_scaling` must be of type default, .* is 'llama3'",
        ),
        (
            {"rope_scaling": {"type": "linear"}},
            "`rope_scaling` must be of type default, .* is 'linear'",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "`rope_parameters` must be of type default, .* is 'yarn'",
        ),
        ({"attention_bias": True}, "`attention_bias` must be False, .* is True"),
        ({"mlp_bias": True}, "`mlp_bias` must be False"),
        ({"hidden_act": "gelu"}, "`hidden_act` must be 'silu', .* is 'gelu'"),
        ({"head_dim": 16}, "`head_dim` must be hidden_size / num_attention_heads = 8, is 16"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` must be None"),
        ({"rms_norm_eps": 0}, "`rms_norm_eps` must be a number above 0, is 0"),
        ({"hidden_size": None}, "`hidden_size` must be a whole number of at least 1, is None"),
        ({"num_attention_heads": 3}, "`heads` must divide the width 32"),
        ({"intermediate_size": 41}, r"mlp.gate_proj.weight is \[40, 32\], not \[41, 32\]"),
        (
            {"num_hidden_layers": 3},
            r"lacks the tensor model.layers.2.input_layernorm.weight \[32\]",
        ),
        ({"num_hidden_layers": 1}, r"holds model.layers.1\..* no place for"),
    ],
)
def test_what_the_decoder_lacks_is_named(folder, changes, told):
    llama_folders.change(folder / "config.json", **changes)
    check_refusal(folder, told)


def check_refusal(folder, told):
    with pytest.raises(ValueError, match=told) as error:
        llama.check(folder)
    assert "\n" not in str(error.value)


def test_what_old_configs_leave_out_has_llamas_default(folder):
    config = {
        "rope_theta": None,
        "rms_norm_eps": None,
        "num_key_value_heads": None,
        "hidden_act": None,
    }
    llama_folders.change(folder / "config.json", **config)
    made = llama.read_config(folder)
    assert (made["rope_base"], made["norm_epsilon"], made["kv_heads"]) == (10000.0, 1e-6, 4)
    llama_folders.change(
        folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 7.0}
    )
    assert llama.read_config(folder)["rope_base"] == 7.0


def _without(tensors):
    del tensors[Q]


def _of_another_type(tensors):
    tensors[Q] = tensors[Q].astype(np.int8)


def _of_another_shape(tensors):
    tensors[Q] = tensors[Q].T[:8]


def _with_a_bias(tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without, rf"lacks the tensor {Q} \[32, 32\]"),
        (_of_another_type, f"{Q} is I8; known: F32, F16, BF16"),
        (_of_another_shape, rf"{Q} is \[8, 32\], not \[32, 32\]"),
        (_with_a_bias, "holds model.layers.0.self_attn.q_proj.bias, which"),
    ],
)
def test_wrong_tensors_are_named(folder, change, told):
    tensors = tensors_of(folder)
    change(tensors)
    keep(folder, tensors)
    check_refusal(folder, told)


def test_a_tensor_that_is_not_finite_is_named(folder):
    tensors = tensors_of(folder)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = np.nan
    keep(folder, tensors)
    with pytest.raises(ValueError, match=r"down.* not finite"):
        llama.read(folder)


def test_wrong_files_are_named(folder):
    save_file({Q: np.zeros((32, 32), np.float32)}, folder / "second.safetensors")
    check_refusal(
        folder, f"tensor {Q} stands twice, in .*model.safetensors and in .*second.safetensors"
    )
    (folder / "second.safetensors").write_bytes(b"damaged")
    check_refusal(folder, r"can't read .*second\.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "../model.safetensors"}}'
    )
    check_refusal(folder, "must map tensors to files of its folder in `weight_map`")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    check_refusal(folder, r"holds no \*\.safetensors; other formats can carry code")
    (folder / "config.json").unlink()
    check_refusal(folder, r"config\.json is not there")


def test_a_depth_that_no_file_could_hold_is_refused_at_once(tmp_path):
    llama_folders.write(tmp_path, llama_folders.make_decoder())
    llama_folders.change(tmp_path / "config.json", num_hidden_layers=10**12)
    with pytest.raises(
        ValueError, match=r"json: `num_hidden_layers` is 1000000000000, more than the 21 tensors"
    ):
        llama.check(tmp_path)
