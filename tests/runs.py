"""Binaries run as a user runs them: a process of its own, from the checkout."""

import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = "--config=configs/smoke.py"


def start(name: str, *arguments: str) -> subprocess.Popen:
    """A running binary."""
    return _start("-m", f"experiments.{name}", *arguments)


def start_code(code: str, *arguments: str) -> subprocess.Popen:
    """A running program that may do to a binary what a test needs."""
    return _start("-c", code, *arguments)


def _start(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "120"},
    )


def end(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """The binary once it has ended, whatever its exit code."""
    output, error = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, error)


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
    words = ["draft", "target", "token", "accept", "reject", "sample", "teacher", "student", "loss", "kernel"]
    for i in range(24):
        draw = np.random.default_rng(i)
        lines = (" ".join(draw.choice(words, size=12)) for _ in range(40))
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
