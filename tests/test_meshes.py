"""One run on many devices and in several processes. The slow ones: pytest -m slow
tests/test_meshes.py"""

import os
import signal
import socket
import time

import jax
import numpy as np
import pytest

from configs import smoke
from jaxdiv.runs import lock, processes
from jaxdiv.runs.specs import RunSpec
from jaxdiv.training import sharding
from tests import commands, runs, stops
from tests.stops import EVERY, STEPS, TEACHER_STEPS

EIGHT, FOUR, TWO = ({"XLA_FLAGS": f"--xla_force_host_platform_device_count={n}"} for n in (8, 4, 2))
EXACT = {"JAX_ENABLE_X64": "1"}
LONG = 850  # seconds for all meshes; pytest itself ends what takes 900


def train(*arguments, **environment):
    return runs.start_python("-m", "tests.sharded_training", *arguments, **environment)


def check_ended(*processes, limit=runs.LIMIT):
    """All of them end well within `limit` seconds."""
    latest = time.monotonic() + limit
    try:
        ends = [runs.end(process, limit=max(latest - time.monotonic(), 1)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for done in ends:
        assert done.returncode == 0, done.stderr[-3000:]


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def test_training_is_the_same_on_other_meshes():
    # Its few steps are mostly compiling.
    quickly = f"{EIGHT['XLA_FLAGS']} --xla_backend_optimization_level=0"
    check_ended(train("some", XLA_FLAGS=quickly, **EXACT))


@pytest.mark.slow
@pytest.mark.parametrize("types", [EXACT, {}], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", ["kangaroo", "decoder", "family", "classifier"])
@pytest.mark.parametrize("count", [1, 2], ids=["one process", "two processes"])
def test_training_is_the_same_on_every_mesh(kind, types, count):
    if count == 1:
        check_ended(train(kind, **EIGHT, **types), limit=LONG)
    else:
        both = kind, f"localhost:{free_port()}", "2"
        check_ended(*(train(*both, str(k), **FOUR, **types) for k in range(2)), limit=LONG)


def config_on(**mesh):
    config = smoke.get_config()
    config.mesh.update(mesh)
    return RunSpec.from_config(config.to_dict())


def test_a_mesh_that_does_not_fit_is_refused_but_for_reading():
    message = (
        "is student 1 x data 3 x fsdp 1 x tensor 1, which must multiply to the 1 devices that "
        "there are; an axis of -1 takes what the others leave"
    )
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(config_on(data=3))
    with pytest.raises(ValueError, match=r"student` = 3 must divide `config.seeds` = 2"):
        sharding.make_mesh(config_on(student=3), jax.local_devices() * 3)
    assert sharding.make_mesh_for_reading(config_on(data=64)).size == 1


def test_rows_come_back_as_they_went_in():
    rows = sharding.BatchSharding(sharding.single_device_mesh(), 3)
    batch = {"inputs": np.arange(12).reshape(3, 4)}
    assert (rows.padded_rows, rows.local_rows) == (3, slice(0, 3))
    np.testing.assert_array_equal(rows.gather(rows.put_local(batch))["inputs"], batch["inputs"])


def flags(folder, texts, **mesh):
    return [
        *stops.flags(folder, texts),
        *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()),
    ]


def start_two(folder, texts, *more):
    """Both processes of a run on 2 × 2 devices."""
    address = f"--coordinator=localhost:{free_port()}"
    both = (
        [*flags(folder, texts, fsdp=2), address, "--processes=2", f"--process={k}", *more]
        for k in range(2)
    )
    return [runs.start("distill", *arguments, **TWO) for arguments in both]


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_processes(tmp_path, texts):
    """8 devices, then one, then two processes of 2: no batch is left out, and the students are
    those of one device."""
    runs.succeed("distill", *flags(tmp_path / "whole", texts))
    cut = tmp_path / "cut"
    process = runs.start("distill", *flags(cut, texts, data=2, fsdp=4), **EIGHT)
    done = stops.stop_when(process, lambda: stops.step_of(cut, "teacher") > EVERY, signal.SIGTERM)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    process = runs.start("distill", *flags(cut, texts))
    done = stops.stop_when(process, lambda: stops.step_of(cut, "student") > EVERY, signal.SIGTERM)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "goes on with devices 1 cpu in place of 8 cpu" in " ".join(done.stderr.split())
    check_ended(*start_two(cut, texts))
    for stage, steps in (("teacher", TEACHER_STEPS), ("students", STEPS)):
        right = stops.arrays(cut, stage, steps)
        for name, values in stops.arrays(tmp_path / "whole", stage, steps).items():
            np.testing.assert_allclose(right[name], values, rtol=0, atol=2e-2, err_msg=name)
    for folder in (tmp_path / "whole", cut):
        assert len((folder / "curves" / "student.jsonl").read_text().splitlines()) == STEPS


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_both_go_on(tmp_path, texts):
    cut = tmp_path / "cut"
    first, second = start_two(cut, texts)
    stops.wait_until(first, lambda: stops.step_of(cut, "student") > EVERY)
    second.send_signal(signal.SIGTERM)
    for done in (runs.end(first), runs.end(second)):
        assert done.returncode == 128 + signal.SIGTERM, done.stderr
    stopped = stops.step_of(cut, "student")
    assert (cut / "students" / str(stopped)).is_dir()
    check_ended(*start_two(cut, texts))
    assert (cut / "report.html").exists()


@pytest.mark.slow
def test_one_process_that_fails_ends_all_with_its_cause(tmp_path, texts):
    first, second = start_two(
        tmp_path / "run", texts, "--config.teacher.optimizer.learning_rate=1e30"
    )
    for done in (runs.end(first), runs.end(second)):
        assert done.returncode == 2, done.stderr
        assert "the teacher's loss or gradient is not finite at step" in done.stderr
    with lock.hold(tmp_path / "held"):
        first, second = start_two(tmp_path / "held", texts)
        ends = runs.end(first), runs.end(second)
    cause = f"work folder {tmp_path / 'held'} is in use by process {os.getpid()}"
    messages = f"error: {cause}", f"error: process 0 on {socket.gethostname()} ended: {cause}"
    for done, message in zip(ends, messages, strict=True):
        assert done.returncode == 2, done.stderr
        assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_leaves_no_other_waiting(tmp_path, texts, killed):
    processes = start_two(tmp_path / "run", texts)
    stops.wait_until(processes[0], lambda: stops.step_of(tmp_path / "run", "teacher") > 5)
    processes[killed].kill()
    for process in processes:
        assert runs.end(process).returncode != 0


REFUSED = {
    "`config.mesh` is student 1 x data 3 x": ["--config.mesh.data=3"],
    "`config.mesh.fsdp` must be a whole number of at least 1, or -1 for all": [
        "--config.mesh.fsdp=0"
    ],
    "`config.mesh` may have one axis of -1": ["--config.mesh.fsdp=-1"],
    "--process=2 must be below --processes=2": [
        "--coordinator=localhost:1",
        "--processes=2",
        "--process=2",
    ],
    "need --coordinator=HOST:PORT": ["--processes=2"],
}


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    arguments = [[runs.SMOKE, workdir, *flags] for flags in REFUSED.values()]
    for message, done in zip(REFUSED, commands.many("distill", arguments), strict=True):
        runs.check_refusal(done, message)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("coordinator", ["localhost", "localhost:99999", ":12", "localhost:port"])
def test_a_coordinator_that_is_no_address_is_refused(coordinator):
    with pytest.raises(
        ValueError, match=f"--coordinator must be HOST:PORT or auto, got '{coordinator}'"
    ):
        processes.initialize(coordinator, 2, 1, print)


def test_a_first_process_that_does_not_come_is_told(monkeypatch):
    monkeypatch.setattr(processes, "_START_SECONDS", 0)
    with pytest.raises(
        ValueError, match=r"no first process answered at --coordinator=localhost:\d+ within 0 s"
    ):
        processes.initialize(f"localhost:{free_port()}", 2, 1, print)
