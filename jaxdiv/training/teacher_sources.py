"""Pretrained teachers: the folder of another run, or an HF folder of the Llama family.

A new source is one class with the methods of `TeacherSource` and one line in `SOURCES`.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxdiv import files, models
from jaxdiv.data import hf_tokenizer
from jaxdiv.data.tokenizer import FILE, Tokenizer
from jaxdiv.models import llama
from jaxdiv.runs import step_folders
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.specs import RunSpec, TeacherSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import sharding
from jaxdiv.training.state import Model, population_shapes

SOURCE, SOURCE_FINGERPRINT = "teacher taken from", "fingerprint of the teacher's files"  # facts
# Keys of `config.teacher` that describe the model.
_MODEL_KEYS = (
    "kind",
    "depth",
    "width",
    "heads",
    "kv_heads",
    "mlp_width",
    "padded_vocabulary",
    "rope_base",
    "norm_epsilon",
)


def builder(spec: TeacherSpec, vocab_size: int) -> Callable[[nnx.Rngs], nnx.Module]:
    """Returns the function that builds an untrained teacher."""
    return lambda rngs: models.build_teacher(dataclasses.asdict(spec), vocab_size, rngs)


def vocab_size(workdir: Workdir) -> int:
    """Returns the size of a run's tokenizer, or the number of its image classes."""
    spec = workdir.spec().data
    return spec.vocabulary if spec.is_images else Tokenizer.load(workdir.tokenizer).vocab_size


def restore(
    spec: TeacherSpec, workdir: Workdir, vocab_size: int, mesh: Mesh | None = None
) -> Model:
    """Restores the trained teacher from the run's folder, spread over `mesh`.

    Raises FileNotFoundError if its training did not end.
    """
    return _restore(spec, workdir, vocab_size, mesh).student(0)


def _restore(spec, workdir, vocab_size, mesh):
    """Restores the population of one that was saved."""
    shapes = population_shapes(builder(spec, vocab_size), 1, mesh)
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        tree, _ = checkpoints.restore({"params": (shapes.params,)}, step=spec.last_step)
    return shapes.with_params(tree["params"][0])


def sizes(config: Mapping) -> dict[str, Any]:
    """Returns the values of a run's config that its teacher decides, by dotted key."""
    return {
        **{f"teacher.{key}": config["teacher"][key] for key in _MODEL_KEYS},
        **{f"data.{key}": config["data"][key] for key in ("vocabulary", "channels")},
    }


@runtime_checkable
class TeacherSource(Protocol):
    """A pretrained teacher with its tokenizer, made from the path of `config.teacher.checkpoint`.

    Attributes:
      run: the run whose tokens may be read instead of tokenizing anew; None if there is none.
    """

    run: Workdir | None

    def checked_sizes(self) -> dict[str, Any]:
        """Returns the values that the teacher decides, by dotted key of the config.

        Raises ValueError or FileNotFoundError unless parameters and tokenizer can be read.
        """

    def tokenizer(self) -> Tokenizer:
        """Reads the tokenizer."""

    def params(self, dtype: str, mesh: Mesh) -> Any:
        """Reads the parameters [1, ...] for activations of `dtype`, spread over `mesh`."""

    def facts(self) -> dict[str, str]:
        """Returns facts for the run that takes the teacher: `SOURCE` and `SOURCE_FINGERPRINT`."""


class LlamaSource:
    """Model and tokenizer of an HF folder of the Llama family."""

    run = None

    def __init__(self, path: str | os.PathLike):
        if files.in_bucket(path):
            raise ValueError(f"{path}: a Llama folder is read from this machine alone; copy it")
        self.folder = pathlib.Path(path)
        self._arguments = llama.read_config(path)

    def checked_sizes(self) -> dict[str, Any]:
        llama.check(self.folder)
        self.tokenizer()
        arguments = {**self._arguments, "kind": "decoder", "padded_vocabulary": 0}
        keys = {f"teacher.{key}": arguments[key] for key in _MODEL_KEYS}
        return {**keys, "data.vocabulary": arguments["vocab_size"]}

    def tokenizer(self) -> Tokenizer:
        return hf_tokenizer.read(self.folder, vocab_size=self._arguments["vocab_size"])

    def params(self, dtype: str, mesh: Mesh) -> Any:
        _, params = llama.read_split(self.folder, dtype=dtype)
        return sharding.put(jax.tree.map(lambda x: x[None], params), mesh)

    def facts(self) -> dict[str, str]:
        digest = hashlib.sha256()
        names = (self.folder / llama.CONFIG, self.folder / FILE)
        for path in (*names, *llama.weight_files(self.folder)):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {SOURCE: str(self.folder), SOURCE_FINGERPRINT: digest.hexdigest()[:16]}


class RunSource:
    """The teacher of another run."""

    def __init__(self, path: str | os.PathLike):
        self.run = Workdir(path)
        self._config = self.run.config()
        self._spec = RunSpec.from_config(self._config).teacher

    def checked_sizes(self) -> dict[str, Any]:
        with Checkpoints(self.run.teacher, read_only=True) as checkpoints:
            checkpoints.require(self._spec.last_step)
        return sizes(self._config)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.run.tokenizer)

    def params(self, dtype: str, mesh: Mesh) -> Any:
        return _restore(self._spec, self.run, vocab_size(self.run), mesh).params

    def facts(self) -> dict[str, str]:
        manifest = self.run.teacher / str(self._spec.last_step) / step_folders.MANIFEST
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
        # A teacher that the run took over itself keeps the fingerprint of its first source.
        fingerprint = self.run.facts().get(SOURCE_FINGERPRINT) or digest
        return {SOURCE: str(self.run.root), SOURCE_FINGERPRINT: fingerprint}


def _is_hf_folder(path: str | os.PathLike) -> bool:
    path = files.path_of(path) / llama.CONFIG
    config = files.read_json(path) if path.is_file() else None
    return isinstance(config, dict) and "model_type" in config


# Tests of a path and the sources that take it. The first match counts; runs refuse other folders.
SOURCES = ((_is_hf_folder, LlamaSource), (lambda path: True, RunSource))


def find(path: str | os.PathLike) -> TeacherSource:
    """Opens the teacher source in `path`; raises FileNotFoundError or ValueError without one."""
    return next(source for matches, source in SOURCES if matches(path))(path)


def check_same_source(source: TeacherSource, facts: Mapping[str, Any]) -> None:
    """Raises ValueError if a run's `facts` say that it took its teacher from other files."""
    before, current = facts.get(SOURCE_FINGERPRINT), source.facts()
    if before not in (None, current[SOURCE_FINGERPRINT]):
        raise ValueError(
            f"the {SOURCE_FINGERPRINT} in {current[SOURCE]} is {current[SOURCE_FINGERPRINT]}, not "
            f"{before} as the run began with; begin another run"
        )
