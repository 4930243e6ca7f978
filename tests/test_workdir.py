"""The work folder: one config, facts that stay, clear refusals."""

import contextlib
import dataclasses
import os

import jax
import numpy as np
import pytest

from configs import smoke
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs import metrics, trackers
from jaxdiv.runs.workdir import DATA_READY, RESUMED_WITH, ConfigDiffers, Workdir


def config(**changes):
    return {**smoke.get_config().to_dict(), **changes}


def test_another_config_is_refused_once_there_is_something_to_lose(tmp_path):
    run = Workdir(tmp_path / "run")
    run.initialize_or_resume(config(seed=1))
    run.initialize_or_resume(config(seed=2))
    run.add_facts({DATA_READY: "0123"})
    run.initialize_or_resume(config(seed=2))
    with pytest.raises(
        ConfigDiffers, match=r"config.seed is 2 there, 3 here; config.seeds is 2 there, 5 here"
    ) as error:
        run.initialize_or_resume(config(seed=3, seeds=5))
    assert error.value.keys == ("config.seed", "config.seeds")
    (run.root / "facts.json").unlink()
    run.teacher.mkdir()
    with pytest.raises(ConfigDiffers):
        run.initialize_or_resume(config(seed=3))
    assert run.config()["seed"] == 2


def test_what_decides_no_result_may_change(tmp_path, capsys):
    run, changed = Workdir(tmp_path), config()
    run.initialize_or_resume(changed)
    run.add_facts({DATA_READY: "0123"})
    changed["checkpoint"] = {"every": 7, "keep": 9}
    changed["log"]["every"] = 1
    changed["student"]["steps"] += 10
    run.initialize_or_resume(changed)
    assert run.config() == Workdir(tmp_path).config()
    assert run_config.differences(run.config(), changed) == {}
    assert RESUMED_WITH not in run.facts()
    assert capsys.readouterr().err == ""


def test_more_steps_of_trained_students_and_other_versions_are_recorded(tmp_path, capsys):
    run, changed = Workdir(tmp_path), config()
    run.initialize_or_resume(changed)
    run.students.mkdir()
    files.write_json(tmp_path / "facts.json", {**run.facts(), "jax": "0.1"})
    changed["student"]["steps"] = 13
    for _ in range(2):
        run.initialize_or_resume(changed)
    notes = [f"jax {jax.__version__} in place of 0.1", "config.student.steps 13 in place of 12"]
    assert run.facts()[RESUMED_WITH] == "; ".join(notes)
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path} goes on with {text}" for text in notes
    ]
    assert run.facts()["jax"] == "0.1"
    changed["student"]["steps"] = 12
    with pytest.raises(ConfigDiffers, match=r"config.student.steps is 13 there, 12 here"):
        run.initialize_or_resume(changed)


def test_a_folder_without_a_run_is_named_and_facts_stay_as_the_run_began(tmp_path):
    run = Workdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run"):
        run.config()
    run.initialize_or_resume(config())
    run.add_facts({"python": "2.7", "more": 1})
    assert run.facts()["python"] != "2.7"
    assert run.facts()["more"] == 1


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
    stage = trackers.TrackedStage(tmp_path, "student", ["ce", "kl"], [5, 6])
    with contextlib.closing(metrics.Curves(stage)) as curves:
        for step in (1, 2, 3):
            curves.write(step, {"loss": np.array([[step, 2.0], [3.0, np.nan]])}, {})
    with open(tmp_path / "student.jsonl", "a") as file:
        file.write('{"step": 4, "loss": {"c')
    with contextlib.closing(metrics.Curves(dataclasses.replace(stage, done=2))) as curves:
        curves.write(3, {"loss": np.array([[30.0, 2.0], [3.0, np.nan]])}, {})
    frame = metrics.read_curves(tmp_path, "student", [5, 6])
    first = frame[(frame["loss"] == "ce") & (frame["seed"] == 5)]
    assert first["step"].tolist() == [1, 2, 3]
    assert first["value"].tolist() == [1, 2, 30]
    assert len(frame[(frame["loss"] == "kl") & (frame["seed"] == 6)]) == 0
