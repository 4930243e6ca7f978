"""Kills, signals and full disks, as they come to real runs.

The slow ones: python -m pytest -n 0 -m slow tests/test_faults.py
"""

import os
import re
import signal
import subprocess

import numpy as np
import pytest

from jaxdiv.runs import lock
from jaxdiv.runs.checkpoints import Checkpoints
from tests import runs, stops
from tests.stops import EVERY, STEPS, TEACHER_STEPS

CHAINS = 5
RUN = """from experiments import distill
from experiments.common import cli
cli.run(distill.main, resumes=True)
"""
# Saves that take so long that a signal meets one.
SLOW_SAVES = f"""import time
from experiments.common import startup
startup.begin("__main__")
from jaxdiv.runs import step_folders
write = step_folders.write_manifest
step_folders.write_manifest = lambda folder: (time.sleep(5), write(folder))
{RUN}"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, texts):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.succeed("distill", *stops.flags(folder, texts))
    return folder


@pytest.fixture
def cut(whole, tmp_path, texts):
    return stops.StoppedRun(tmp_path / "cut", texts, whole)


def saving(folder):
    return any(path.name.startswith(".aside-") for path in folder.glob(".*"))


def moments(run, draw):
    """Yields (phase, condition, seconds) of a run's kills: each comes within so many seconds."""
    in_teacher, in_students = draw.integers(1, TEACHER_STEPS - 5), draw.integers(1, STEPS - 5)
    teacher, students = run.folder / "teacher", run.folder / "students"
    last = students / str(STEPS)
    yield "data preparation", lambda: (run.folder / "config.json").exists(), 0.2
    yield "teacher step", lambda: stops.step_of(run.folder, "teacher") > in_teacher, 0.05
    yield "teacher save", lambda: saving(teacher), 0.02
    yield "student step", lambda: stops.step_of(run.folder, "student") > in_students, 0.05
    yield "student save", lambda: saving(students), 0.02
    yield "evaluation", lambda: last.exists() and not saving(students), 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(CHAINS))
def test_kills_at_random_moments_change_nothing(cut, seed):
    """Kills a run six times, each at a random moment within its phase."""
    draw = np.random.default_rng(seed)
    for phase, condition, seconds in moments(cut, draw):
        done = cut.stop(condition, signal.SIGKILL, delay=seconds * draw.random())
        assert done.returncode == -signal.SIGKILL, (phase, done.stderr)
        assert not (cut.folder / "results.csv").exists()
    cut.finish()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_signals_outside_of_training_end_in_one_line(cut, sign):
    draw = np.random.default_rng(sign)

    def check(condition, delay):
        process = runs.start("distill", *cut.flags)
        done = stops.stop_when(process, condition, sign, delay=delay)
        assert done.returncode == 128 + sign, done.stderr
        assert re.fullmatch(
            r"error: interrupted(; the same command goes on from what was saved)?\n", done.stderr
        )

    for _ in range(8):
        check(lambda: True, delay=0.3 + 3 * draw.random())  # no handler in Python's own start
    check(lambda: (cut.folder / "config.json").exists(), delay=0.1 * draw.random())
    cut.stop(lambda: (cut.folder / "students" / str(STEPS)).exists(), signal.SIGKILL)
    for _ in range(3):
        check(lambda: (cut.folder / lock.NAME).exists(), delay=1.5 * draw.random())
    cut.finish()


def test_a_signal_while_importing_ends_in_one_line(tmp_path):
    process = runs.start("distill", runs.SMOKE, f"--workdir={tmp_path / 'run'}")
    done = stops.stop_while_importing(process)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "error: interrupted\n")


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_leaves_all_whole(cut):
    teacher = cut.folder / "teacher"
    process = runs.start_code(SLOW_SAVES, *cut.flags)
    stops.wait_until(process, lambda: stops.step_of(cut.folder, "teacher") > EVERY + 1)
    process.send_signal(signal.SIGTERM)
    stops.wait_until(process, lambda: (teacher / str(EVERY)).exists() and saving(teacher))
    done = stops.stop_when(process, lambda: True, signal.SIGTERM, delay=0.5)
    assert done.returncode == 128 + signal.SIGTERM
    assert "finishing this step, then saving; once more to end at once" in done.stderr
    assert "is saved" not in done.stderr
    assert saving(teacher)
    with Checkpoints(teacher, read_only=True) as checkpoints:
        assert (checkpoints.latest(), checkpoints.damaged()) == (EVERY, [])
    cut.finish()


@pytest.mark.slow
def test_a_flipped_bit_is_reported_and_trained_over(cut, tmp_path):
    folder = cut.copy_whole()
    for stage, last, reader in (
        ("students", STEPS, ["acceptance"]),
        ("teacher", TEACHER_STEPS, ["export", "--teacher"]),
    ):
        file = max((folder / stage / str(last)).rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        refused = runs.run(*reader, f"--workdir={folder}", f"--output={tmp_path / 'out'}")
        message = f"checkpoint {folder}/{stage}/{last} is damaged: {file} is not what was saved"
        runs.check_refusal(refused, message)
    new = stops.flags(tmp_path / "new", cut.texts)
    refused = runs.run("distill", *new, f"--config.teacher.checkpoint={folder}")
    damage = f"checkpoint {folder}/teacher/{TEACHER_STEPS} is damaged"
    runs.check_refusal(refused, "`config.teacher.checkpoint`", damage)
    (folder / "results.csv").unlink()
    done = runs.run("distill", *cut.flags)
    assert done.returncode == 0, done.stderr
    for stage, last, older in (("students", STEPS, 150), ("teacher", TEACHER_STEPS, 50)):
        path = f"{folder}/{stage}/{last}"
        assert f"checkpoint {path} is damaged: {path}/state/" in done.stderr
        assert f"going on from step {older}" in done.stderr
    cut.check_same_end()


@pytest.mark.slow
def test_more_steps_of_the_students_are_trained_and_recorded(cut):
    folder = cut.copy_whole()
    done = runs.run("distill", *cut.flags, f"--config.student.steps={STEPS + 20}")
    assert done.returncode == 0, done.stderr
    note = f"config.student.steps {STEPS + 20} in place of {STEPS}"
    assert f"{folder} goes on with {note}" in done.stderr
    assert note in (folder / "report.html").read_text()
    assert stops.step_of(folder, "student") == STEPS + 20
    refused = runs.run("distill", *cut.flags)
    runs.check_refusal(refused, f"config.student.steps is {STEPS + 20} there")


def test_the_second_of_two_runs_is_refused(tmp_path):
    with lock.hold(tmp_path):
        done = runs.run("distill", runs.SMOKE, f"--workdir={tmp_path}")
    runs.check_refusal(done, f"work folder {tmp_path} is in use by process {os.getpid()} on")
    assert os.listdir(tmp_path) == []


def limited(code, limit, *arguments):
    """Runs `code` in a process none of whose files may grow beyond `limit` bytes."""
    size = f"({limit}, resource.RLIM_INFINITY)"
    limiting = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, {size})\n"
    return runs.end(runs.start_code(limiting + code, *arguments))


SAVES = """import pathlib, resource, sys
import numpy as np
from absl import logging
from jaxdiv.runs.checkpoints import Checkpoints
logging.set_verbosity(logging.FATAL)
values = {"x": np.random.default_rng(0).random(100_000)}
with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    checkpoints.save(1, {"x": np.zeros(10)}, {})
    checkpoints.wait()
    try:
        checkpoints.save(2, values, {})
        checkpoints.wait()
    except OSError as error:
        print(error, checkpoints.latest())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    checkpoints.save(3, values, {})
    checkpoints.wait()
    print(checkpoints.latest())
"""


def test_a_disk_without_room_leaves_what_was_saved(tmp_path):
    done = limited(SAVES, 100_000, tmp_path)
    assert done.returncode == 0, done.stderr
    failed, latest = done.stdout.splitlines()
    assert re.fullmatch(rf"checkpoint {tmp_path}/2 can't be saved; .*File too large.* 1", failed)
    assert latest == "3"
    assert sorted(os.listdir(tmp_path)) == ["1", "3"]


def check_end(done, *messages):
    """Checks that after the lines of finished stages one line has the messages."""
    assert done.returncode == 2, done.stderr
    *lines, error = done.stderr.splitlines()
    assert all("/s  " in line for line in lines), done.stderr
    for message in ("error: ", *messages):
        assert message in error


@pytest.mark.slow
def test_a_run_on_a_disk_without_room_goes_on_once_there_is_some(cut):
    teacher = cut.folder / "teacher"
    done = cut.stop(lambda: stops.step_of(cut.folder, "teacher") > EVERY, signal.SIGTERM)
    assert done.returncode == 128 + signal.SIGTERM
    before = sorted(os.listdir(teacher))
    largest = max(path.stat().st_size for path in teacher.rglob("*"))
    done = limited(RUN, largest // 2, *cut.flags)
    check_end(done, f"checkpoint {teacher}/{2 * EVERY} can't be saved", "File too large")
    assert sorted(os.listdir(teacher)) == before
    with Checkpoints(teacher, read_only=True) as checkpoints:
        assert checkpoints.damaged() == []
    cut.finish()


@pytest.fixture
def small_disk(request, tmp_path):
    """A file system of 1 MiB, or of the options in the test's parameter."""
    disk, options = tmp_path / "disk", getattr(request, "param", "size=1m")
    disk.mkdir()
    try:
        _system("mount", "-t", "tmpfs", "-o", options, "tmpfs", disk)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems can't be mounted here")
    yield disk
    _system("umount", disk)


def _system(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=runs.LIMIT)


def check_growing(run, disk, options):
    """Runs again and again on a growing disk until there is room; each end but the last is told."""
    ends = []
    while (done := runs.run("distill", *run.flags)).returncode:
        check_end(done, "No space left on device", str(run.folder))
        ends.append(done.stderr)
        _system("mount", "-o", f"remount,{next(options)}", disk)
    assert ends
    run.check_same_end()


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_once_it_grew(whole, texts, small_disk):
    sizes = (f"size={1024 + 512 * i}k" for i in range(1, 100))
    check_growing(stops.StoppedRun(small_disk / "cut", texts, whole), small_disk, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["nr_inodes=2"], indirect=True)
def test_a_full_inode_table_is_reported_before_any_work(whole, texts, small_disk):
    run = stops.StoppedRun(small_disk / "cut", texts, whole)
    done = runs.run("distill", *run.flags)
    message = f"work folder {run.folder} can't be written to: No space left on device"
    runs.check_refusal(done, message)
    inodes = (f"nr_inodes={8 * 3**i}" for i in range(20))
    _system("mount", "-o", f"remount,{next(inodes)}", small_disk)
    check_growing(run, small_disk, inodes)
