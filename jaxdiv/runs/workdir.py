"""The folder of a run: one config, and all that decides or records its result."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs import processes, progress
from jaxdiv.runs.specs import RunSpec

PACKAGES = (
    "jaxdiv",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tokenizers",
    "numpy",
)
# The fact that is written once the data lies in the folder; before it, no work is lost by another
# config.
DATA_READY = "data fingerprint"
RESUMED_WITH = "gone on with"


class ConfigDiffers(ValueError):
    """The folder holds a run of another config; `keys` are the dotted keys that differ."""

    def __init__(self, message: str, keys: tuple[str, ...]):
        super().__init__(message)
        self.keys = keys


class Workdir:
    """Paths of a run's folder, its config and its facts.

    Raises:
      ValueError: `root` is in a bucket, and what reaches it is not installed.
      OSError: it is in one that can't be reached.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = files.path_of(root)
        files.check_reachable(self.root)
        self.tokenizer = self.root / "tokenizer.json"
        self.data = self.root / "data"
        self.tokens = self.root / "tokens"
        self.images = self.root / "images"
        self.teacher = self.root / "teacher"
        self.students = self.root / "students"
        self.curves = self.root / "curves"
        self.results = self.root / "results.csv"
        self.report = self.root / "report.html"
        self._config = self.root / "config.json"
        self._facts = self.root / "facts.json"

    def config(self) -> dict[str, Any]:
        """The run's config as plain values.

        Raises:
          FileNotFoundError: this is no run's folder.
          ValueError: config.json holds something else.
        """
        if not self._config.is_file():
            raise FileNotFoundError(
                f"{self.root} is not the folder of a run: it has no config.json"
            )
        config = _object(self._config)
        try:
            run_config.check(config)
        except ValueError as error:
            raise ValueError(f"{self._config}: {error}") from None
        return config

    def spec(self) -> RunSpec:
        """Returns the run's config as frozen specs; raises as `config` does."""
        return RunSpec.from_config(self.config())

    def initialize_or_resume(self, config: Mapping) -> None:
        """Begins a run, or goes on in one of the same config, but for what `config.may_change`.

        What of that bears on results, and other versions of the code, are said and kept among the
        facts. A folder in which the data was never made ready, as after a mistyped path, takes the
        new config.

        Raises:
          ConfigDiffers: it is a run of another config.
        """
        if processes.is_first():
            self._initialize(config)
        processes.barrier("claim")
        if not self._config.is_file():
            raise ValueError(
                f"{self.root} is not one folder for all processes; give a path that all of them share"
            )

    def _initialize(self, config):
        begun = self.facts().get(DATA_READY) or self.teacher.exists() or self.students.exists()
        if self._config.exists() and begun:
            self._go_on(self.config(), config)
        files.write_json(self._config, dict(config))
        self.add_facts(_surroundings())

    def _go_on(self, old, new):
        changes = run_config.differences(old, new)
        refused = {
            key: pair for key, pair in changes.items() if not run_config.may_change(key, *pair)
        }
        if refused:
            listed = "; ".join(
                f"{key} is {there!r} there, {here!r} here" for key, (there, here) in refused.items()
            )
            raise ConfigDiffers(
                f"{self.root} holds a run of another config: {listed}", tuple(refused)
            )
        known, now = self.facts(), _surroundings()
        others = {
            name: (known[name], now[name])
            for name in now
            if known.get(name, now[name]) != now[name]
        }
        if self.students.exists():  # whose first steps had the learning rate of fewer
            others |= {key: pair for key, pair in changes.items() if key == "config.student.steps"}
        for name, (there, here) in others.items():
            self._note(f"{name} {here} in place of {there}")

    def _note(self, text):
        notes = str(self.facts().get(RESUMED_WITH, "")).split("; ")
        if text not in notes:
            progress.log(f"{self.root} goes on with {text}")
            files.write_json(
                self._facts, {**self.facts(), RESUMED_WITH: "; ".join([*filter(None, notes), text])}
            )

    def save_batch(self, step: int, batch: Mapping[str, Any]) -> pathlib.PurePath:
        """Writes what went wrong at `step` to an npz file: inputs, labels, weights, step; gives its
        path."""
        path = self.root / "not_finite.npz"
        if processes.is_first():
            with files.replacing(path) as temporary:
                np.savez(
                    temporary,
                    step=step,
                    **{name: np.asarray(values) for name, values in batch.items()},
                )
        processes.barrier("batch kept")  # before any of them ends the others
        return path

    def facts(self) -> dict[str, Any]:
        """What is known of the run beside its config: versions, git revision, fingerprints,
        counts."""
        return _object(self._facts) if self._facts.exists() else {}

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Adds facts; what stands there already stays, as the run began with it."""
        known = self.facts()
        if processes.is_first() and not facts.keys() <= known.keys():
            files.write_json(self._facts, {**facts, **known})


def _object(path):
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, not {type(value).__name__}")
    return value


def _surroundings():
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    system = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices,
    }
    return {**system, **versions, **_revision()}


def _installed(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _revision():
    here = pathlib.Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git revision": found.stdout.strip()}
