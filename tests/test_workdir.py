"""The work folder: one config, facts that stay, clear refusals."""

import os

import numpy as np
import pytest

from configs import smoke
from jaxdiv import files
from jaxdiv.training import metrics
from jaxdiv.training.workdir import DATA_READY, ConfigDiffers, Workdir


def config(**changes):
    made = smoke.get_config()
    made.update(changes)
    return made.to_dict()


def test_another_config_is_refused_once_there_is_something_to_lose(tmp_path):
    run = Workdir(tmp_path / "run")
    run.claim(config(seed=1))
    run.claim(config(seed=2))
    run.add_facts({DATA_READY: "0123"})
    run.claim(config(seed=2))
    with pytest.raises(
        ConfigDiffers, match=r"config.seed is 2 there, 3 here; config.seeds is 2 there, 5 here"
    ) as error:
        run.claim(config(seed=3, seeds=5))
    assert error.value.keys == ("config.seed", "config.seeds")
    (run.root / "facts.json").unlink()
    run.teacher.mkdir()
    with pytest.raises(ConfigDiffers):
        run.claim(config(seed=3))
    assert run.config()["seed"] == 2


def test_facts_stay_as_the_run_began(tmp_path):
    run = Workdir(tmp_path)
    run.claim(config())
    run.add_facts({"python": "2.7", "more": 1})
    assert run.facts()["python"] != "2.7"
    assert run.facts()["more"] == 1


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run"):
        Workdir(tmp_path).config()


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail():
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json is not JSON"):
        files.read_json(tmp_path / "b.json")


def test_curves_go_on_after_a_step_and_drop_later_and_cut_lines(tmp_path):
    with metrics.Curves(tmp_path, "student", ["ce", "kl"], [5, 6], step=0) as curves:
        for step in (1, 2, 3):
            curves.write(step, {"loss": np.array([[step, 2.0], [3.0, np.nan]])})
    with open(tmp_path / "student.jsonl", "a") as file:
        file.write('{"step": 4, "loss": {"c')
    with metrics.Curves(tmp_path, "student", ["ce", "kl"], [5, 6], step=2) as curves:
        curves.write(3, {"loss": np.array([[30.0, 2.0], [3.0, np.nan]])})
    frame = metrics.read_curves(tmp_path, "student", [5, 6])
    first = frame[(frame["loss"] == "ce") & (frame["seed"] == 5)]
    assert first["step"].tolist() == [1, 2, 3]
    assert first["value"].tolist() == [1, 2, 30]
    assert len(frame[(frame["loss"] == "kl") & (frame["seed"] == 6)]) == 0
