"""Kills, signals and full disks, as they come to real runs. The slow ones: pytest -m slow
tests/test_faults.py"""

import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from jaxdiv.runs import lock
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.workdir import Workdir
from tests import runs, stops
from tests.stops import EVERY, STEPS, TEACHER_STEPS

CHAINS = 5
# A run whose saves take long enough to be met.
SLOW_SAVES = """import sys, time
from experiments.common import startup
startup.begin("__main__")
from experiments import distill
from experiments.common import cli
from jaxdiv.runs import manifests
write = manifests.write
manifests.write = lambda folder: (time.sleep(5), write(folder))
cli.run(distill.main, resumes=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(texts, the folder of a run that was never stopped)."""
    folder = tmp_path_factory.mktemp("whole")
    texts = runs.write_texts(folder / "texts")
    runs.succeed("distill", *stops.flags(folder / "run", texts))
    return texts, folder / "run"


def saving(folder):
    return any(path.name.startswith(".aside-") for path in folder.glob(".*"))


def moments(folder, draw):
    """(what it is in, when it has come, up to how many seconds later) of a run's kills, in the
    order of the run."""
    run = Workdir(folder)
    in_teacher, in_students = draw.integers(1, TEACHER_STEPS - 5), draw.integers(1, STEPS - 5)

    def ended():
        return (run.students / str(STEPS)).exists()

    yield "data preparation", lambda: (folder / "config.json").exists(), 0.2
    yield "teacher step", lambda: stops.step_of(folder, "teacher") > in_teacher, 0.05
    yield "teacher save", lambda: saving(run.teacher), 0.02
    yield "student step", lambda: stops.step_of(folder, "student") > in_students, 0.05
    yield "student save", lambda: saving(run.students), 0.02
    yield "evaluation", lambda: ended() and not saving(run.students), 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(CHAINS))
def test_kills_at_random_moments_change_nothing(whole, tmp_path, seed):
    """Six kills a chain, each at a moment drawn within its phase."""
    texts, never_stopped = whole
    draw = np.random.default_rng(seed)
    for phase, come, spread in moments(tmp_path / "cut", draw):
        process = runs.start("distill", *stops.flags(tmp_path / "cut", texts))
        done = stops.stop_when(process, come, signal.SIGKILL, delay=spread * draw.random())
        assert done.returncode == -signal.SIGKILL, (phase, done.stderr)
        assert not (tmp_path / "cut" / "results.csv").exists()
    runs.succeed("distill", *stops.flags(tmp_path / "cut", texts))
    stops.check_same_end(never_stopped, tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_signals_outside_of_training_end_in_one_line(whole, tmp_path, sign):
    texts, never_stopped = whole
    cut = tmp_path / "cut"
    draw = np.random.default_rng(sign)

    def check(come, delay):
        process = runs.start("distill", *stops.flags(cut, texts))
        done = stops.stop_when(process, come, sign, delay=delay)
        assert done.returncode == 128 + sign, done.stderr
        assert re.fullmatch(
            r"error: interrupted(; the same command goes on from what was saved)?\n", done.stderr
        )

    for _ in range(8):
        # Of Python's own start no program can speak.
        check(lambda: True, delay=0.3 + 3 * draw.random())
    check(lambda: (cut / "config.json").exists(), delay=0.1 * draw.random())
    process = runs.start("distill", *stops.flags(cut, texts))
    stops.stop_when(process, lambda: (cut / "students" / str(STEPS)).exists(), signal.SIGKILL)
    for _ in range(3):
        check(lambda: (cut / lock.NAME).exists(), delay=1.5 * draw.random())
    runs.succeed("distill", *stops.flags(cut, texts))
    stops.check_same_end(never_stopped, cut)


def test_a_signal_while_importing_ends_in_one_line(tmp_path):
    process = runs.start("distill", runs.SMOKE, f"--workdir={tmp_path / 'run'}")
    done = stops.stop_when(
        process, lambda: stops.handles(process, signal.SIGTERM), signal.SIGTERM, delay=0.3
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "error: interrupted\n")


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_leaves_all_whole(whole, tmp_path):
    texts, never_stopped = whole
    cut = tmp_path / "cut"
    process = runs.start_code(SLOW_SAVES, *stops.flags(cut, texts))
    stops.wait_until(process, lambda: stops.step_of(cut, "teacher") > EVERY + 1)
    process.send_signal(signal.SIGTERM)
    stops.wait_until(
        process, lambda: (cut / "teacher" / str(EVERY)).exists() and saving(cut / "teacher")
    )
    done = stops.stop_when(process, lambda: True, signal.SIGTERM, delay=0.5)
    assert done.returncode == 128 + signal.SIGTERM
    assert "finishing this step, then saving; once more to end at once" in done.stderr
    assert "is saved" not in done.stderr
    assert saving(cut / "teacher")
    with Checkpoints(cut / "teacher", read_only=True) as checkpoints:
        assert (checkpoints.latest(), checkpoints.damaged()) == (EVERY, [])
    runs.succeed("distill", *stops.flags(cut, texts))
    stops.check_same_end(never_stopped, cut)


@pytest.mark.slow
def test_a_flipped_bit_is_told_and_trained_over(whole, tmp_path):
    texts, never_stopped = whole
    cut = tmp_path / "cut"
    shutil.copytree(never_stopped, cut)
    for stage, last, reader in (
        ("students", STEPS, ["acceptance"]),
        ("teacher", TEACHER_STEPS, ["export", "--teacher"]),
    ):
        file = max((cut / stage / str(last)).rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        refused = runs.run(*reader, f"--workdir={cut}", f"--output={tmp_path / 'out'}")
        runs.check_refusal(
            refused, f"checkpoint {cut}/{stage}/{last} is damaged: {file} is not what was saved"
        )
    refused = runs.run(
        "distill", *stops.flags(tmp_path / "new", texts), f"--config.teacher.checkpoint={cut}"
    )
    runs.check_refusal(
        refused,
        "`config.teacher.checkpoint`",
        f"checkpoint {cut}/teacher/{TEACHER_STEPS} is damaged",
    )
    (cut / "results.csv").unlink()
    done = runs.run("distill", *stops.flags(cut, texts))
    assert done.returncode == 0, done.stderr
    for stage, last, older in (("students", STEPS, 150), ("teacher", TEACHER_STEPS, 50)):
        assert (
            f"checkpoint {cut}/{stage}/{last} is damaged: {cut}/{stage}/{last}/state/"
            in done.stderr
        )
        assert f"going on from step {older}" in done.stderr
    stops.check_same_end(never_stopped, cut)


@pytest.mark.slow
def test_more_steps_of_the_students_are_trained_and_kept_in_mind(whole, tmp_path):
    texts, never_stopped = whole
    cut = tmp_path / "cut"
    shutil.copytree(never_stopped, cut)
    done = runs.run("distill", *stops.flags(cut, texts), f"--config.student.steps={STEPS + 20}")
    assert done.returncode == 0, done.stderr
    told = f"config.student.steps {STEPS + 20} in place of {STEPS}"
    assert f"{cut} goes on with {told}" in done.stderr
    assert told in (cut / "report.html").read_text()
    assert stops.step_of(cut, "student") == STEPS + 20
    runs.check_refusal(
        runs.run("distill", *stops.flags(cut, texts)), f"config.student.steps is {STEPS + 20} there"
    )


def test_the_second_of_two_runs_is_refused(tmp_path):
    with lock.hold(tmp_path):
        done = runs.run("distill", runs.SMOKE, f"--workdir={tmp_path}")
    runs.check_refusal(done, f"work folder {tmp_path} is in use by process {os.getpid()} on")
    assert os.listdir(tmp_path) == []


def limited(code, limit, *arguments):
    """`code` in a process none of whose files may grow beyond `limit` bytes."""
    limiting = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
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


def check_end(done, *told):
    """After the bars of the stages that ended, one line that says `told`."""
    assert done.returncode == 2, done.stderr
    *bars, error = done.stderr.splitlines()
    assert all("━" in line for line in bars), done.stderr
    for words in ("error: ", *told):
        assert words in error


RUN = "from experiments import distill; from experiments.common import cli; cli.run(distill.main, resumes=True)"


@pytest.mark.slow
def test_a_run_on_a_disk_without_room_goes_on_once_there_is_some(whole, tmp_path):
    texts, never_stopped = whole
    cut = tmp_path / "cut"
    code, _ = stops.stop(cut, texts, stage="teacher", after=EVERY, sign=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    before = sorted(os.listdir(cut / "teacher"))
    largest = max(path.stat().st_size for path in (cut / "teacher").rglob("*"))
    done = limited(RUN, largest // 2, *stops.flags(cut, texts))
    check_end(done, f"checkpoint {cut}/teacher/{2 * EVERY} can't be saved", "File too large")
    assert sorted(os.listdir(cut / "teacher")) == before
    with Checkpoints(cut / "teacher", read_only=True) as checkpoints:
        assert checkpoints.damaged() == []
    runs.succeed("distill", *stops.flags(cut, texts))
    stops.check_same_end(never_stopped, cut)


@pytest.fixture
def small_disk(request, tmp_path):
    """A file system of 1 MiB, or of what is asked for."""
    disk, limit = tmp_path / "disk", getattr(request, "param", "size=1m")
    disk.mkdir()
    try:
        _system("mount", "-t", "tmpfs", "-o", limit, "tmpfs", disk)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems can't be mounted here")
    yield disk
    _system("umount", disk)


def _system(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=runs.LIMIT)


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_once_it_grew(whole, small_disk):
    texts, never_stopped = whole
    cut = small_disk / "cut"
    sizes = iter(range(1, 100))
    told = []
    while (done := runs.run("distill", *stops.flags(cut, texts))).returncode:
        check_end(done, "No space left on device", str(cut))
        told.append(done.stderr)
        _system("mount", "-o", f"remount,size={1024 + 512 * next(sizes)}k", small_disk)
    assert told
    stops.check_same_end(never_stopped, cut)
    print(*told, sep="")


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["nr_inodes=2"], indirect=True)
def test_a_full_inode_table_is_told_before_any_work(whole, small_disk):
    texts, never_stopped = whole
    cut = small_disk / "cut"
    done = runs.run("distill", *stops.flags(cut, texts))
    runs.check_refusal(done, f"work folder {cut} can't be written to: No space left on device")
    told, inodes = [], 8
    _system("mount", "-o", f"remount,nr_inodes={inodes}", small_disk)
    while (done := runs.run("distill", *stops.flags(cut, texts))).returncode:
        check_end(done, "No space left on device", str(cut))
        told.append(done.stderr)
        inodes *= 3
        _system("mount", "-o", f"remount,nr_inodes={inodes}", small_disk)
    assert told
    stops.check_same_end(never_stopped, cut)
