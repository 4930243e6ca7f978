"""Pretrained teachers: their sizes replace the config's, and misfits are refused at once."""

import shutil

import jax
import numpy as np
import pytest

from configs import smoke
from jaxdiv.models import llama
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
