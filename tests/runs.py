"""Binaries run as a user runs them: a process of its own, from the checkout."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = "--config=configs/smoke.py"


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]


def start(name: str, *arguments: str) -> subprocess.Popen:
    """A running binary; its standard output and error are one pipe of text."""
    return subprocess.Popen(
        command(name, *arguments),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(),
    )


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """A binary that has ended, whatever its exit code."""
    return subprocess.run(
        command(name, *arguments), cwd=ROOT, text=True, capture_output=True, env=_environment(), timeout=600
    )


def succeed(name: str, *arguments: str) -> str:
    """The standard output of a binary that must exit with 0."""
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment():
    return {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
