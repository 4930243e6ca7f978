"""A run that is stopped and killed, again and again, ends where a run ends that never was."""

import contextlib
import json
import re
import signal
import time

import numpy as np
import orbax.checkpoint as ocp

from jaxdiv.training.workdir import Workdir
from tests import runs

EVERY, TEACHER_STEPS, STEPS = 25, 60, 160
PATIENCE = 120  # seconds for a process to come so far


def flags(folder, texts):
    """Two losses of two seeds on shuffled data."""
    return [
        runs.SMOKE,
        f"--workdir={folder}",
        f"--config.data.files={texts}/*.txt",
        "--config.losses=kl,tv",
        "--config.evaluation.contexts=corpus",
        f"--config.checkpoint.every={EVERY}",
        f"--config.teacher.steps={TEACHER_STEPS}",
        f"--config.student.steps={STEPS}",
    ]


def stop(folder, texts, *, stage, after, sign):
    """Starts the run, sends it `sign` once `stage` is past step `after`, and gives its exit code and standard error."""
    process = runs.start("distill", *flags(folder, texts))
    wanted = time.monotonic() + PATIENCE
    while _step(folder, stage) <= after:
        assert process.poll() is None, runs.end(process).stderr
        assert time.monotonic() < wanted, "the run does not move"
        time.sleep(0.002)
    process.send_signal(sign)
    done = runs.end(process)
    return done.returncode, " ".join(done.stderr.split())


def _step(folder, stage):
    with contextlib.suppress(FileNotFoundError, IndexError, json.JSONDecodeError):
        lines = (folder / "curves" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1])["step"]
    return 0


def arrays(folder, stage, step):
    """Every array of a checkpoint, by name."""
    path = folder / stage / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        names = checkpointer.metadata(path).item_metadata.tree
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        return checkpointer.restore(path, restore_args=as_numpy)


def check_same(folder, other, stage, step):
    mine, theirs = arrays(folder, stage, step), arrays(other, stage, step)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 10
    for name, values in mine.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name, strict=True)


def test_signals_and_kills_change_nothing(tmp_path):
    texts = runs.write_texts(tmp_path / "texts")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs.succeed("distill", *flags(whole, texts))

    code, _ = stop(cut, texts, stage="teacher", after=30, sign=signal.SIGKILL)
    assert code == -signal.SIGKILL
    # Steps are quick: stop until it was once at a step that the schedule would not have saved.
    after, stopped = 5, EVERY
    while stopped % EVERY == 0:
        code, printed = stop(cut, texts, stage="student", after=after, sign=signal.SIGINT)
        assert code == 128 + signal.SIGINT, printed
        stopped = int(re.search(r"stopped by SIGINT after step (\d+), which is saved", printed)[1])
        after = stopped + 1
    assert str(stopped) in {path.name for path in Workdir(cut).students.iterdir()}
    code, _ = stop(cut, texts, stage="student", after=stopped + EVERY, sign=signal.SIGKILL)
    assert code == -signal.SIGKILL
    runs.succeed("distill", *flags(cut, texts))

    check_same(whole, cut, "teacher", TEACHER_STEPS)
    check_same(whole, cut, "students", STEPS)
    assert (whole / "results.csv").read_bytes() == (cut / "results.csv").read_bytes()
    assert (whole / "curves" / "student.jsonl").read_bytes() == (cut / "curves" / "student.jsonl").read_bytes()


def test_what_is_not_finished_is_not_measured_nor_lent(tmp_path):
    texts = runs.write_texts(tmp_path / "texts")
    code, printed = stop(tmp_path / "run", texts, stage="student", after=5, sign=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, printed
    assert "stopped by SIGTERM" in printed
    refused = runs.run("acceptance", f"--workdir={tmp_path / 'run'}")
    runs.check_refusal(refused, f"of {STEPS}; finish it with the command that began it")
    code, _ = stop(tmp_path / "other", texts, stage="teacher", after=5, sign=signal.SIGTERM)
    refused = runs.run(
        "distill", *flags(tmp_path / "third", texts), f"--config.teacher.checkpoint={tmp_path / 'other'}"
    )
    runs.check_refusal(refused, "`config.teacher.checkpoint`", f"of {TEACHER_STEPS}; finish it")
