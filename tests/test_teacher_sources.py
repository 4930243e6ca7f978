"""Pretrained teachers: their sizes replace the config's, and misfits are refused at once."""

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


def resolve(folder, tmp_path, **changes):
    config = smoke.get_config()
    changes = {
        "teacher.checkpoint": str(folder),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    config.update_from_flattened_dict(changes)
    return teacher_sources.resolve(config.to_dict(), Workdir(tmp_path / "run"), typed=changes)


def test_sizes_of_a_llama_replace_the_configs(folder, tmp_path, capsys):
    config = resolve(folder, tmp_path)
    sizes = {
        "width": 32,
        "heads": 4,
        "kv_heads": 2,
        "mlp_width": 40,
        "rope_base": 333.0,
        "norm_epsilon": 1e-3,
    }
    assert sizes.items() <= config["teacher"].items()
    assert config["data"]["vocabulary"] == llama_folders.V
    assert config["teacher"]["steps"] == smoke.get_config().teacher.steps
    printed = capsys.readouterr().err
    assert f"the teacher of {folder} has" in printed
    assert "teacher.heads=4" in printed
    assert "teacher.depth" not in printed
    assert not (tmp_path / "run").exists()


def test_what_was_typed_stays_or_is_refused(folder, tmp_path):
    assert resolve(folder, tmp_path, teacher__heads=4)["teacher"]["heads"] == 4
    with pytest.raises(
        ValueError, match=r"`config.teacher.heads` is 8, but the teacher of .* has 4"
    ):
        resolve(folder, tmp_path, teacher__heads=8)
    with pytest.raises(
        ValueError, match=r"`config.teacher.padded_vocabulary` is 512, but the teacher of .* has 0"
    ):
        resolve(folder, tmp_path, teacher__padded_vocabulary=512)
    with pytest.raises(
        ValueError, match=r"`config.data.vocabulary` is 512, but the teacher of .* has 300"
    ):
        resolve(folder, tmp_path, data__vocabulary=512)


def test_students_are_checked_against_the_new_sizes(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"`config.student.exit_layer` must be at most .* = 2, got 3"
    ):
        resolve(folder, tmp_path, student__exit_layer=3)
    with pytest.raises(ValueError, match=r"config.student: `heads` must divide the width 32"):
        resolve(folder, tmp_path, student__heads=3)


def test_a_folder_that_is_neither_run_nor_llama_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        resolve(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"`model_type` must be llama, is 'gpt2'"):
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


def test_another_weight_is_another_fingerprint(folder, tmp_path):
    llama_folders.write(tmp_path, llama_folders.make_decoder(seed=1))
    first, second = (
        teacher_sources.find(path).facts()[teacher_sources.SOURCE_FINGERPRINT]
        for path in (folder, tmp_path)
    )
    assert first != second


def test_a_damaged_teacher_is_taken_over_again_from_the_same_files_alone(tmp_path, capsys):
    llama_folders.write(tmp_path / "llama", llama_folders.make_decoder())
    config, run = resolve(tmp_path / "llama", tmp_path), Workdir(tmp_path / "run")
    run.initialize_or_resume(config)
    spec = run.spec()

    def damage():
        (run.teacher / "0" / step_folders.MANIFEST).unlink()

    teacher_sources.take_over(spec, run, sharding.single_device_mesh())
    damage()
    teacher_sources.take_over(spec, run, sharding.single_device_mesh())
    printed = capsys.readouterr().err
    assert f"checkpoint {run.teacher}/0 is damaged" in printed
    assert "taking the teacher over again" in printed
    assert step_folders.manifest_fault(run.teacher / "0") is None
    damage()
    llama_folders.write(tmp_path / "llama", llama_folders.make_decoder(seed=1))
    with pytest.raises(
        ValueError, match=r"the fingerprint of the teacher's files in .* as the run began with"
    ):
        teacher_sources.take_over(spec, run, sharding.single_device_mesh())


def test_a_run_and_its_llama_give_the_same_teacher_from_disk_to_the_mesh(folder, tmp_path):
    config, run, mesh = (
        resolve(folder, tmp_path),
        Workdir(tmp_path / "run"),
        sharding.single_device_mesh(),
    )
    run.initialize_or_resume(config)
    teacher_sources.take_over(run.spec(), run, mesh)
    first = teacher_sources.find(folder)
    first.tokenizer().save(run.tokenizer)
    both = [
        source.params(config["dtype"], mesh) for source in (first, teacher_sources.find(run.root))
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)
    _, read = llama.read_split(folder)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(read)), (
        "on no device before it is where it belongs"
    )
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[None], y), read, both[0])
