"""Runs with a teacher of each family, from its files to exported students: pytest -m slow."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.models import llama
from tests import commands, gguf_files, llama_folders, runs

pytestmark = pytest.mark.slow

V = llama_folders.V
SIZES = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 64, "vocab_size": V}
RULE = {"rope_type": "linear", "factor": 2.0}
FAMILIES = {
    "llama": {"rope_scaling": json.dumps(RULE), "tied_head": True},
    "mistral": {"windows": "9"},
    "qwen2": {"attention_bias": "qkv", "windows": "0,9"},
    "qwen3": {"query_key_norm": True, "head_width": 12, "tied_head": True},
    "gemma3": {
        **{"head_width": 16, "tied_head": True, "windows": "9,0", "window_rope_base": 50.0},
        **{"query_key_norm": True, "post_norms": True, "activation": "gelu_tanh"},
        **{"query_scale": 0.25, "embedding_scale": 32**0.5},
    },
}


def flags(source, texts, run, student):
    short = {
        **{"teacher.checkpoint": source, "student.kind": student, "data.files": f"{texts}/*.txt"},
        **{"losses": "kl", "seeds": 1, "student.heads": 4, "student.kv_heads": 2},
    }
    return [runs.SMOKE, f"--workdir={run}", *(f"--config.{key}={x}" for key, x in short.items())]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return runs.write_texts(tmp_path_factory.mktemp("families") / "texts")


def check_run(source, texts, folder, student):
    """Trains, decodes by a chain and by a tree, and exports the student."""
    run = folder / student
    done = runs.succeed("distill", *flags(source, texts, run, student))
    assert "kl" in done
    common = [f"--workdir={run}", "--prompt=draft token", "--max_tokens=20"]
    common += ["--output=jsonl", "--temperature=0"]
    drafts = (["--loss=kl", "--gamma=3"], ["--loss=kl", "--tree=0,1,00"], ["--draft=lookup"])
    decoded = commands.many("decode", [[*common, *draft] for draft in drafts])
    assert not any(each.returncode for each in decoded), [each.stderr for each in decoded]
    tokens = [json.loads(each.stdout)["tokens"] for each in decoded]
    assert tokens[0] == tokens[1] == tokens[2]
    outputs = [f"--output={folder}/{student} {kind}" for kind in ("teacher", "student")]
    ends = [["--teacher", outputs[0]], ["--loss=kl", "--seed=0", outputs[1]]]
    return commands.many("export", [[f"--workdir={run}", *end] for end in ends])


@pytest.mark.parametrize("student", ["kangaroo", "decoder"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_teaches_and_comes_back(family, student, texts, tmp_path):
    decoder = llama_folders.random_decoder(**SIZES, **FAMILIES[family])
    llama_folders.write(tmp_path / "model", decoder)
    for done in check_run(tmp_path / "model", texts, tmp_path, student):
        assert done.returncode == 0, done.stderr
    before, after = (
        llama.ModelFiles(path) for path in (tmp_path / "model", tmp_path / f"{student} teacher")
    )
    assert before.options == after.options
    jax.tree.map(np.testing.assert_array_equal, before.read_split()[1], after.read_split()[1])
    if importlib.util.find_spec("libtpu") and student == "kangaroo":
        source = flags(tmp_path / "model", texts, "", student)
        source = [flag for flag in source if not flag.startswith("--workdir")]
        assert "student" in runs.succeed(
            "compile", *source, "--topology=v5e:2x2", "--steps=student"
        )


def test_a_gguf_file_teaches(texts, tmp_path):
    """The tokenizer comes with it. Divisors of frequencies can't be exported."""
    fields, tensors = gguf_files.llama_parts()
    divisors = np.array([1.0, 1.5, 2.0, 8.0], np.float32)
    tensors["rope_freqs.weight"] = divisors, gguf_files.Type.F32
    path = tmp_path / "model.gguf"
    gguf_files.write(path, "llama", fields, tensors)
    teacher, student = check_run(path, texts, tmp_path, "kangaroo")
    runs.check_refusal(teacher, "rope_scaling by divisors")
    assert student.returncode == 0, student.stderr
    tokenizer = Tokenizer.load(tmp_path / "kangaroo" / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode("draft token")) == "draft token"
