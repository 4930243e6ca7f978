"""A run of two losses and seeds that can be stopped anywhere, and the end it must come to."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import signal
import time

import numpy as np
import orbax.checkpoint as ocp

from tests import runs

EVERY, TEACHER_STEPS, STEPS = 25, 60, 160


def flags(folder, texts):
    """Returns the flags of a run of two losses of two seeds on shuffled data."""
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


@dataclasses.dataclass(frozen=True)
class StoppedRun:
    """A run in `folder` that must end as the run in `whole`, which was never stopped."""

    folder: pathlib.Path
    texts: pathlib.Path
    whole: pathlib.Path

    @property
    def flags(self):
        return flags(self.folder, self.texts)

    def stop(self, condition, sign, *, delay=0.0):
        """Starts or resumes the run, and stops it as `stop_when` does."""
        return stop_when(runs.start("distill", *self.flags), condition, sign, delay=delay)

    def copy_whole(self):
        """Makes the run a copy of the whole one, and returns its folder."""
        return shutil.copytree(self.whole, self.folder)

    def finish(self):
        """Resumes the run to its end and checks that."""
        runs.succeed("distill", *self.flags)
        self.check_same_end()

    def check_same_end(self):
        check_same_end(self.whole, self.folder)


def stop_when(process, condition, sign, *, delay=0.0):
    """Sends `sign` some seconds after `condition()` is true, and waits for the process's end."""
    wait_until(process, condition)
    time.sleep(delay)
    runs.send_signal(process, sign)
    return runs.end(process)


def stop_while_importing(process):
    """Sends SIGTERM soon after the process has installed its first handler."""

    def handles():
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return caught >> (signal.SIGTERM - 1) & 1

    return stop_when(process, handles, signal.SIGTERM, delay=0.3)


def wait_until(process, condition):
    deadline = time.monotonic() + runs.LIMIT
    while not condition():
        assert process.poll() is None, runs.end(process).stderr
        if time.monotonic() > deadline:
            runs.give_up(process)
        time.sleep(0.001)


def step_of(folder, stage):
    """Returns the last step in the stage's curves."""
    with contextlib.suppress(FileNotFoundError, IndexError, json.JSONDecodeError):
        lines = (folder / "curves" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1])["step"]
    return 0


def arrays(folder, stage, step):
    """Returns every array of a checkpoint by name."""
    path = folder / stage / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        names = checkpointer.metadata(path).item_metadata.tree
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        return checkpointer.restore(path, restore_args=as_numpy)


def check_same_end(whole, cut):
    """Checks for the same parameters and optimizer states bit for bit, results and curves."""
    for stage, step in (("teacher", TEACHER_STEPS), ("students", STEPS)):
        left, right = arrays(whole, stage, step), arrays(cut, stage, step)
        assert left.keys() == right.keys()
        assert len(left) > 10
        for name, values in left.items():
            np.testing.assert_array_equal(values, right[name], err_msg=name, strict=True)
    for name in ("results.csv", "curves/student.jsonl"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
