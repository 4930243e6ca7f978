"""Runs beside each other: one alone writes to a folder, a dead one never keeps it."""

import json
import os
import signal
import socket

import pytest

from jaxdiv.runs import lock
from tests import runs

HOLD = """import sys, time
from jaxdiv.runs import lock
with lock.hold(sys.argv[1]):
    print(flush=True)
    time.sleep(60)
"""

COMPILE = """import jax, pathlib, sys
from experiments.common import cli
cli.enable_compilation_cache()
for _ in range(2):
    jax.clear_caches()
    jax.jit(lambda x: x + 1)(1.0)
    entries = list(pathlib.Path(sys.argv[1]).glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:99])
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = runs.start_code(HOLD, tmp_path / "run")
    assert runs.line(process) == "\n"
    yield process
    process.kill()
    runs.end(process)


def test_the_second_run_is_refused_and_a_killed_one_is_taken_over(holder, tmp_path):
    folder = tmp_path / "run"
    message = f"in use by process {holder.pid} on {socket.gethostname()}; wait for it or"
    with pytest.raises(ValueError, match=message), lock.hold(folder):
        pass
    assert (folder / lock.NAME).exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait(runs.LIMIT)
    assert (folder / lock.NAME).exists()
    with lock.hold(folder):
        process = {"host": socket.gethostname(), "process": os.getpid()}
        assert json.loads((folder / lock.NAME).read_text()) == process
    assert os.listdir(folder) == []


def test_a_lock_of_another_host_is_taken_over_with_a_message(tmp_path, capsys):
    (tmp_path / lock.NAME).write_text(json.dumps({"host": "elsewhere", "process": 12}))
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["host"] == socket.gethostname()
    message = "was in use by process 12 on elsewhere, which no longer holds it"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}', "\0" * 10_000, "[" * 10_000])
def test_a_lock_that_names_nobody_is_taken_over(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with lock.hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / lock.NAME).symlink_to(tmp_path / "file")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "linked"):
        message = rf"work folder {folder} can't be written to"
        with pytest.raises(OSError, match=message), lock.hold(folder):
            pass


def test_a_half_written_entry_of_the_compilation_cache_is_compiled_anew(tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    ended = runs.end(runs.start_python("-c", COMPILE, tmp_path, **cache))
    assert (ended.returncode, ended.stderr) == (0, "")
