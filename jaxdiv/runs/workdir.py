"""The folder of a run: one config, and everything that decides or records its result."""

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

_PACKAGES = (
    *("jaxdiv", "jax", "jaxlib", "flax", "optax"),
    *("orbax-checkpoint", "grain", "tokenizers", "numpy"),
)
# Written once the data is in the folder. Before it, another config would lose no work.
DATA_READY = "data fingerprint"
RESUMED_WITH = "gone on with"  # versions and steps of later starts, if they differ


class ConfigDiffers(ValueError):
    """The folder holds a run of another config; `keys` are the dotted keys that differ."""

    def __init__(self, message: str, keys: tuple[str, ...]):
        super().__init__(message)
        self.keys = keys


class Workdir:
    """Paths of a run's folder, its config and its facts.

    Raises:
      ValueError: `root` is in a bucket, and the package that reaches it is not installed.
      OSError: `root` is in a bucket that can't be reached.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = files.path_of(root)
        files.check_reachable(self.root)
        self.tokenizer = self.root / "tokenizer.json"
        self.data = self.root / "data"
        self.tokens = self.root / "tokens"
        self.images = self.root / "images"
        self.draft_vocabulary = self.root / "draft_vocabulary.npz"
        self.teacher = self.root / "teacher"
        self.teacher_reference = self.root / "teacher.json"
        self.students = self.root / "students"
        self.curves = self.root / "curves"
        self.results = self.root / "results.csv"
        self.report = self.root / "report.html"
        self._config = self.root / "config.json"
        self._facts = self.root / "facts.json"

    def config(self) -> dict[str, Any]:
        """Returns the run's config as plain values.

        Raises:
          FileNotFoundError: this is no run's folder.
          ValueError: config.json holds something else.
        """
        if not self._config.is_file():
            raise FileNotFoundError(
                f"{self.root} is not the folder of a run: it has no config.json"
            )
        config = run_config.completed(_read_object(self._config))
        try:
            run_config.check(config)
        except ValueError as error:
            raise ValueError(f"{self._config}: {error}") from None
        return config

    def spec(self) -> RunSpec:
        """Returns the run's config as frozen specs; raises as `config` does."""
        return RunSpec.from_config(self.config())

    def initialize_or_resume(self, config: Mapping) -> None:
        """Initializes the run, or resumes one whose config differs only in `config.may_change`.

        More steps and other versions of the code, which bear on results, are logged and recorded
        among the facts. A folder whose data was never made ready takes any new config.

        Raises:
          ConfigDiffers: the folder holds a run of another config.
        """
        if processes.is_first():
            started = self.facts().get(DATA_READY) or self.teacher.exists()
            if self._config.exists() and (started or self.students.exists()):
                self._resume(self.config(), config)
            files.write_json(self._config, dict(config))
            self.add_facts(_environment())
        processes.barrier("initialized")
        if not self._config.is_file():
            raise ValueError(
                f"{self.root} is not one folder for all processes; give a path that all of them "
                "share"
            )

    def _resume(self, old: Mapping, new: Mapping) -> None:
        changes = run_config.differences(old, new)
        refused = {
            key: pair for key, pair in changes.items() if not run_config.may_change(key, *pair)
        }
        if refused:
            listed = "; ".join(
                f"{key} is {before!r} there, {after!r} here"
                for key, (before, after) in refused.items()
            )
            raise ConfigDiffers(
                f"{self.root} holds a run of another config: {listed}", tuple(refused)
            )
        facts = self.facts()
        differs = {
            name: (facts[name], value)
            for name, value in _environment().items()
            if facts.get(name, value) != value
        }
        # The first steps of these students had the learning rates of a shorter schedule.
        steps = "config.student.steps"
        if steps in changes and self.students.exists():
            differs[steps] = changes[steps]
        notes = list(filter(None, str(facts.get(RESUMED_WITH, "")).split("; ")))
        before_this = len(notes)
        for name, (before, after) in differs.items():
            note = f"{name} {after} in place of {before}"
            if note not in notes:
                progress.log(f"{self.root} goes on with {note}")
                notes.append(note)
        if len(notes) > before_this:
            files.write_json(self._facts, {**facts, RESUMED_WITH: "; ".join(notes)})

    def save_batch(self, step: int, batch: Mapping[str, Any]) -> pathlib.PurePath:
        """Saves the batch of a step that went wrong as not_finite.npz, and returns its path."""
        path = self.root / "not_finite.npz"
        if processes.is_first():
            arrays = {name: np.asarray(values) for name, values in batch.items()}
            with files.replacing(path) as temporary:
                np.savez(temporary, step=step, **arrays)
        processes.barrier("batch saved")  # before any process ends the others
        return path

    def facts(self) -> dict[str, Any]:
        """Returns the run's versions, git revision, fingerprints and counts."""
        return _read_object(self._facts) if self._facts.exists() else {}

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Adds facts; existing ones stay as the run began with them."""
        existing = self.facts()
        if processes.is_first() and not facts.keys() <= existing.keys():
            files.write_json(self._facts, {**facts, **existing})


def _read_object(path):
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, not {type(value).__name__}")
    return value


def _environment() -> dict[str, str]:
    """Returns the versions, devices and git revision that a run's results may depend on."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }
    for name in _PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # such as jaxdiv in a plain checkout
            continue
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = pathlib.Path(__file__).parent
    try:
        revision = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return facts
    return {**facts, "git revision": revision.stdout.strip()}
