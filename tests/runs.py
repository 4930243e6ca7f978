"""Runs programs as a user does: a process of its own, from the checkout, never without a limit."""

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
    """Starts a program of experiments/."""
    return start_python("-m", f"experiments.{name}", *arguments, **environment)


def start_code(code: str, *arguments: str) -> subprocess.Popen:
    """Starts Python on code, such as a program that a test has to change."""
    return start_python("-c", code, *arguments)


def start_python(*arguments: str, **environment: str | None) -> subprocess.Popen:
    """Starts Python as the head of a process group; variables that are None are left out."""
    defaults = {"JAX_PLATFORMS": "cpu", "COLUMNS": "120", "PYTHONFAULTHANDLER": "1"}
    variables = {**os.environ, **defaults, **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in variables.items() if value is not None},
        process_group=0,
    )


def send_signal(process: subprocess.Popen, signum: int) -> None:
    """Sends a signal to a process that a function here has started, and to its children."""
    os.killpg(process.pid, signum)


def end(
    process: subprocess.Popen, text: str | None = None, *, limit: float = LIMIT
) -> subprocess.CompletedProcess:
    """Gives a process its input and waits for its end, whatever the exit code."""
    try:
        output, error = process.communicate(text, timeout=limit)
    except subprocess.TimeoutExpired:
        give_up(process, limit)
    return subprocess.CompletedProcess(process.args, process.returncode, output, error)


def line(process: subprocess.Popen) -> str:
    """Waits for the first line that a process prints."""
    if not select.select([process.stdout], [], [], LIMIT)[0]:
        give_up(process)
    return process.stdout.readline()


def give_up(process: subprocess.Popen, limit: float = LIMIT) -> NoReturn:
    """Kills a process and its children after `limit` seconds; fails the test with its stacks."""
    send_signal(process, signal.SIGABRT)  # faulthandler prints the stacks
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    _, error = process.communicate()
    pytest.fail(f"killed after {limit:.0f} s: {shlex.join(process.args)}\n{error}")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a program to its end, whatever the exit code."""
    return end(start(name, *arguments))


def succeed(name: str, *arguments: str) -> str:
    """Runs a program that must exit with 0, and returns its standard output."""
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_refusal(done: subprocess.CompletedProcess, *words: str) -> None:
    """Checks that input was refused: exit code 2 and one line on standard error with `words`."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    for each in words:
        assert each in done.stderr


def write_texts(folder: pathlib.Path) -> pathlib.Path:
    """Writes files of text, enough for a smoke run, and returns their folder."""
    folder.mkdir()
    words = [
        *("draft", "target", "token", "accept", "reject"),
        *("sample", "teacher", "student", "loss", "kernel"),
    ]
    for i in range(24):
        draw = np.random.default_rng(i)
        lines = (" ".join(draw.choice(words, size=12)) for _ in range(40))
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
