"""Binaries run as a user runs them: a process of its own, from the checkout. No wait for one is
without an end."""

import contextlib
import os
import pathlib
import select
import shlex
import signal
import subprocess
import sys
from typing import NoReturn

import numpy as np
import pytest

LIMIT = 600  # seconds that a test waits for a process, or for what one writes
ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = "--config=configs/smoke.py"


def start(name: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """A running binary."""
    return start_python("-m", f"experiments.{name}", *arguments, **environment)


def start_code(code: str, *arguments: str) -> subprocess.Popen:
    """A running program that may do to a binary what a test needs."""
    return start_python("-c", code, *arguments)


def start_python(*arguments: str, **environment: str | None) -> subprocess.Popen:
    """A running Python, the head of a process group; what `environment` has as None is left out."""
    told = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "120",
        "PYTHONFAULTHANDLER": "1",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in told.items() if value is not None},
        process_group=0,
    )


def end(
    process: subprocess.Popen, given: str | None = None, *, limit: float = LIMIT
) -> subprocess.CompletedProcess:
    """The process once it was `given` its input and has ended within `limit` seconds, whatever its
    exit code."""
    try:
        output, error = process.communicate(given, timeout=limit)
    except subprocess.TimeoutExpired:
        give_up(process, limit)
    return subprocess.CompletedProcess(process.args, process.returncode, output, error)


def line(process: subprocess.Popen) -> str:
    """The first line that it prints."""
    if not select.select([process.stdout], [], [], LIMIT)[0]:
        give_up(process)
    return process.stdout.readline()


def give_up(process: subprocess.Popen, limit: float = LIMIT) -> NoReturn:
    """Kills a process still there after `limit` seconds, with its children, and fails the test:
    says where it stood."""
    process.send_signal(signal.SIGABRT)  # at which faulthandler tells
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    _, error = process.communicate()
    pytest.fail(f"killed after {limit:.0f} s: {shlex.join(process.args)}\n{error}")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """A binary that has ended, whatever its exit code."""
    return end(start(name, *arguments))


def succeed(name: str, *arguments: str) -> str:
    """The standard output of a binary that must exit with 0."""
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_refusal(done: subprocess.CompletedProcess, *told: str) -> None:
    """Bad input was refused: exit code 2 and one line on standard error that says `told`."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    for words in told:
        assert words in done.stderr


def write_texts(folder: pathlib.Path) -> pathlib.Path:
    """Files of text, enough for a smoke run."""
    folder.mkdir()
    words = [
        "draft",
        "target",
        "token",
        "accept",
        "reject",
        "sample",
        "teacher",
        "student",
        "loss",
        "kernel",
    ]
    for i in range(24):
        draw = np.random.default_rng(i)
        lines = (" ".join(draw.choice(words, size=12)) for _ in range(40))
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
