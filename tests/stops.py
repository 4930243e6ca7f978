"""A run of two losses and seeds that can be stopped anywhere, and what two such runs must have in
common."""

import contextlib
import json
import pathlib
import time

import numpy as np
import orbax.checkpoint as ocp

from tests import runs

EVERY, TEACHER_STEPS, STEPS = 25, 60, 160


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
    """Starts the run, sends it `sign` once `stage` is past step `after`, and gives its exit code
    and standard error."""
    process = runs.start("distill", *flags(folder, texts))
    done = stop_when(process, lambda: step_of(folder, stage) > after, sign)
    return done.returncode, " ".join(done.stderr.split())


def stop_when(process, come, sign, *, delay=0.0):
    """Sends `process` `sign`, `delay` seconds after `come()` is true, and waits for its end."""
    wait_until(process, come)
    time.sleep(delay)
    process.send_signal(sign)
    return runs.end(process)


def wait_until(process, come):
    latest = time.monotonic() + runs.LIMIT
    while not come():
        assert process.poll() is None, runs.end(process).stderr
        if time.monotonic() > latest:
            runs.give_up(process)
        time.sleep(0.001)


def handles(process, signum):
    """Returns True once the process has installed a handler for the signal."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signum - 1) & 1)


def step_of(folder, stage):
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


def check_same_end(whole, cut):
    """The same parameters and optimizer states bit for bit, results and curves."""
    check_same(whole, cut, "teacher", TEACHER_STEPS)
    check_same(whole, cut, "students", STEPS)
    for name in ("results.csv", "curves/student.jsonl"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
