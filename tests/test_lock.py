"""Two runs never write to one folder, and a dead run never keeps it."""

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


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = runs.start_code(HOLD, tmp_path / "run")
    assert runs.line(process) == "\n"
    yield process
    process.kill()
    runs.end(process)


def test_the_second_is_told_who_is_the_first_and_a_killed_one_is_taken_over(holder, tmp_path):
    folder = tmp_path / "run"
    with (
        pytest.raises(
            ValueError,
            match=f"in use by process {holder.pid} on {socket.gethostname()}; wait for it or",
        ),
        lock.hold(folder),
    ):
        pass
    assert (folder / lock.NAME).exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait(runs.LIMIT)
    assert (folder / lock.NAME).exists()
    with lock.hold(folder):
        assert json.loads((folder / lock.NAME).read_text()) == {
            "host": socket.gethostname(),
            "process": os.getpid(),
        }
    assert os.listdir(folder) == []


def test_a_host_that_is_gone_is_taken_over_and_told(tmp_path, capsys):
    (tmp_path / lock.NAME).write_text(json.dumps({"host": "elsewhere", "process": 12}))
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["host"] == socket.gethostname()
    assert (
        "was in use by process 12 on elsewhere, which no longer holds it" in capsys.readouterr().err
    )


@pytest.mark.parametrize("left", ["", "{", "[]", '{"host": 3}', "\0" * 10_000, "[" * 10_000])
def test_what_names_nobody_is_taken_over(tmp_path, left):
    (tmp_path / lock.NAME).write_text(left)
    with lock.hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / lock.NAME).symlink_to(tmp_path / "file")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "linked"):
        with (
            pytest.raises(OSError, match=rf"work folder {folder} can't be written to"),
            lock.hold(folder),
        ):
            pass
