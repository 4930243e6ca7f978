"""Pretrained teachers: their sizes replace the config's, and misfits are refused at once."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import smoke
from jaxdiv.models import llama, safetensors_io
from jaxdiv.runs import step_folders
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import sharding, teacher_sources
from tests import llama_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    llama_folders.write(folder, llama_folders.make_decoder())
    return folder


def resolve(folder, tmp_path, **typed):
    config = smoke.get_config()
    typed = {"teacher.checkpoint": str(folder), **typed}
    config.update_from_flattened_dict(typed)
    return teacher_sources.resolve(config.to_dict(), Workdir(tmp_path / "run"), typed=typed)


def test_sizes_of_a_llama_replace_the_configs(folder, tmp_path, capsys):
    config = resolve(folder, tmp_path)
    sizes = {"width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 40}
    numerics = {"rope_base": 333.0, "norm_epsilon": 1e-3}
    assert (sizes | numerics).items() <= config["teacher"].items()
    assert config["data"]["vocabulary"] == llama_folders.V
    assert config["teacher"]["steps"] == smoke.get_config().teacher.steps
    printed = capsys.readouterr().err
    assert f"the teacher of {folder} has" in printed
    assert "teacher.heads=4" in printed
    assert "teacher.depth" not in printed
    assert not (tmp_path / "run").exists()


def test_what_was_typed_stays(folder, tmp_path):
    assert resolve(folder, tmp_path, **{"teacher.heads": 4})["teacher"]["heads"] == 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("teacher.heads", 8, "teacher.heads` is 8, but the teacher of .* has 4"),
        ("teacher.padded_vocabulary", 512, "teacher.padded_vocabulary` is 512, but .* has 0"),
        ("data.vocabulary", 512, "data.vocabulary` is 512, but the teacher of .* has 300"),
        # Students are checked against the new sizes.
        ("student.exit_layer", 3, "student.exit_layer` must be at most .* = 2, got 3"),
        ("student.heads", 3, "student: `heads` must divide the width 32"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(folder, tmp_path, key, value, message):
    with pytest.raises(ValueError, match=rf"config\.{message}"):
        resolve(folder, tmp_path, **{key: value})


def test_a_folder_that_is_neither_run_nor_llama_is_named(tmp_path):
    message = "`config.teacher.checkpoint`: .* is not the folder of a run"
    with pytest.raises(ValueError, match=message):
        resolve(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"`model_type` must be one of llama, .*, is 'gpt2'"):
        resolve(tmp_path, tmp_path)


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_what_a_llama_folder_lacks_is_told_first(tmp_path, missing):
    llama_folders.write(tmp_path, llama_folders.make_decoder())
    (tmp_path / missing).unlink()
    with pytest.raises(
        ValueError, match=rf"`config.teacher.checkpoint`: .*{missing.split('.')[1]}"
    ) as error:
        resolve(tmp_path, tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_teacher_is_taken_over_again_from_the_same_files_alone(folder, tmp_path, capsys):
    source, run, mesh = tmp_path / "llama", Workdir(tmp_path / "run"), sharding.single_device_mesh()
    shutil.copytree(folder, source)
    run.initialize_or_resume(resolve(source, tmp_path))

    def take_over():
        teacher_sources.take_over(run.spec(), run, mesh)

    def damage():
        (run.teacher / "0" / step_folders.MANIFEST).unlink()

    take_over()
    damage()
    take_over()
    printed = capsys.readouterr().err
    assert f"checkpoint {run.teacher}/0 is damaged" in printed
    assert "taking the teacher over again" in printed
    # The run that took it over gives the same teacher, from disk to the mesh.
    first = teacher_sources.find(source)
    first.tokenizer().save(run.tokenizer)
    both = [s.params("stored", mesh) for s in (first, teacher_sources.find(run.root))]
    jax.tree.map(np.testing.assert_array_equal, *both)
    _, read = llama.ModelFiles(source).read_split()
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), read, both[0])
    damage()
    llama_folders.write(source, llama_folders.make_decoder(seed=1))
    with pytest.raises(
        ValueError, match=r"the fingerprint of the teacher's files in .* as the run began with"
    ):
        take_over()


def test_parameters_keep_the_type_of_the_file(tmp_path):
    tensors = llama_folders.write_half(tmp_path)
    for parameters in ("stored", "float32", "bfloat16"):
        expected = jnp.float32 if parameters == "float32" else jnp.bfloat16
        graphdef, params = llama.ModelFiles(tmp_path).read_split(parameters=parameters)
        read = llama.decoder_tensors(nnx.merge(graphdef, params))
        assert read.keys() == tensors.keys()
        for name, tensor in read.items():
            assert tensor.dtype == (np.float32 if "norm" in name else expected)
            np.testing.assert_array_equal(tensor, tensors[name].astype(np.float32))
    # Products are those of the float32 values, and activations have their own type.
    tokens = np.arange(24)[None]
    logits = llama_folders.forward(tensors, tokens[0], llama_folders.SIZES | llama_folders.NUMERICS)
    decoder = nnx.merge(graphdef, params)
    np.testing.assert_allclose(decoder(tokens).logits[0], logits[1], rtol=0, atol=1e-4)
    half = nnx.merge(llama.ModelFiles(tmp_path).read_split(jnp.bfloat16)[0], params)
    assert half(tokens).features.dtype == jnp.bfloat16


def test_a_large_tensor_is_read_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_io, "_BLOCK", 1000)
    tensors = llama_folders.write_half(tmp_path, np.float16)
    files = llama.ModelFiles(tmp_path)
    blocks = list(files.tensors.blocks("lm_head.weight"))
    assert [first for first, _ in blocks] == list(range(0, llama_folders.V, 15))
    read = llama.decoder_tensors(nnx.merge(*files.read_split(parameters="stored")))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert read[name].dtype == (np.float32 if "norm" in name else np.float16)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_values_that_are_not_finite_are_refused_in_every_type(tmp_path, dtype):
    llama_folders.write_half(tmp_path, dtype)
    path = tmp_path / "part-1.safetensors"
    largest = np.array(jnp.finfo(dtype).max, dtype).tobytes()
    for value, is_refused in ((largest, False), (np.array(np.inf, dtype).tobytes(), True)):
        path.write_bytes(path.read_bytes()[:-2] + value)
        if is_refused:
            with pytest.raises(ValueError, match=r"layers\.1\..* has values that are not finite"):
                llama.ModelFiles(tmp_path).read_split()
        else:
            llama.ModelFiles(tmp_path).read_split()


class Lent:
    """A run with a folder's teacher, in `root`."""

    def __init__(self, source, root, **typed):
        config = smoke.get_config()
        typed = {f"teacher.{key}": value for key, value in typed.items()}
        typed = {"teacher.checkpoint": str(source), **typed}
        config.update_from_flattened_dict(typed)
        self.run = Workdir(root)
        resolved = teacher_sources.resolve(config.to_dict(), self.run, typed=typed)
        self.run.initialize_or_resume(resolved)
        self.source = teacher_sources.find(source)
        self.source.tokenizer().save(self.run.tokenizer)

    def take_over(self):
        teacher_sources.take_over(self.run.spec(), self.run, sharding.single_device_mesh())
        return self

    def params(self):
        teacher = teacher_sources.restore(self.run.spec().teacher, self.run, llama_folders.V)
        return jax.tree.leaves(teacher.params)


def check_same(one, other):
    for x, y in zip(one, other, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_run_copies_a_teacher_or_refers_to_it(tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    llama_folders.write_half(model)
    copy = Lent(model, tmp_path / "copy").take_over()
    refers = Lent(model, tmp_path / "refers", copy="no").take_over()
    assert not copy.run.teacher_reference.exists()
    assert not list(refers.run.teacher.iterdir())
    check_same(copy.params(), refers.params())
    assert {str(x.dtype) for x in copy.params()} == {"bfloat16", "float32"}
    # Above its limit `auto` refers, here by way of the run that does.
    monkeypatch.setattr(teacher_sources, "_MOST_COPIED", 1)
    again = Lent(refers.run.root, tmp_path / "again").take_over()
    wide = Lent(refers.run.root, tmp_path / "wide", copy="yes", parameters="float32").take_over()
    lent = Lent(copy.run.root, tmp_path / "lent").take_over()
    # A cast is another teacher, a copy is not.
    prints = [teacher_sources.RunSource(x.run.root).fingerprint() for x in (copy, refers, wide)]
    assert prints[0] == prints[1] != prints[2]
    references = [teacher_sources.Reference.load(x.run) for x in (refers, again, lent)]
    assert references[0] == references[1]
    assert references[2].path == str(copy.run.root)
    assert {str(x.dtype) for x in wide.params()} == {"float32"}
    for other in (again, lent):
        check_same(copy.params(), other.params())
    # Another time alone changes nothing, other bytes do, and so does a model that is gone.
    os.utime(model / "part-0.safetensors", ns=(1, 1))
    check_same(copy.params(), again.take_over().params())
    path = model / "part-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    for restart in (refers.params, again.take_over):
        with pytest.raises(ValueError, match=r"the files of the teacher in .* are others"):
            restart()
    shutil.rmtree(model)
    with pytest.raises(ValueError, match=rf"refers to the teacher in {model}, which is not there"):
        again.params()
    check_same(copy.params(), lent.params())


def test_a_reference_of_another_form_is_refused(tmp_path):
    run = Workdir(tmp_path)
    run.teacher_reference.write_text('{"path": "/nowhere"}')
    with pytest.raises(ValueError, match=r"teacher.json must hold path, fingerprint, parameters"):
        teacher_sources.Reference.load(run)
