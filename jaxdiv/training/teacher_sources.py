"""Pretrained teachers: another run's, an HF folder, or a GGUF file.

A new source is one class with the methods of `RunSource` and one line in `find`.
"""

import copy
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdiv import files
from jaxdiv.data import gguf_tokenizer, tokenizer
from jaxdiv.data.tokenizer import FILE, Tokenizer
from jaxdiv.models import llama
from jaxdiv.models.layers import FAMILY_OPTIONS
from jaxdiv.runs import config as run_config
from jaxdiv.runs import progress, step_folders
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.config_keys import DECODER_SIZES
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import sharding, state

SOURCE, SOURCE_FINGERPRINT = "teacher taken from", "fingerprint of the teacher's files"  # facts
# Keys of `config.teacher` that describe the model.
_MODEL_KEYS = (
    *("kind", *DECODER_SIZES, "padded_vocabulary", "rope_base", "norm_epsilon"),
    *FAMILY_OPTIONS,
)


class RunSource:
    """The teacher of another run, with its tokenizer, from the path `config.teacher.checkpoint`.

    Attributes:
      run: the run whose tokens may be read instead of tokenizing anew; None if there is none.
    """

    def __init__(self, path: str | os.PathLike):
        self.run = Workdir(path)
        self._config = self.run.config()
        self._spec = RunSpec.from_config(self._config).teacher

    def checked_sizes(self) -> dict[str, Any]:
        """Returns the values that the teacher decides, by dotted key of the config.

        Raises ValueError or FileNotFoundError unless parameters and tokenizer can be read.
        """
        with Checkpoints(self.run.teacher, read_only=True) as checkpoints:
            checkpoints.require(self._spec.last_step)
        return _sizes(self._config)

    def tokenizer(self) -> Tokenizer:
        """Reads the tokenizer."""
        return Tokenizer.load(self.run.tokenizer)

    def params(self, dtype: str, mesh: Mesh) -> Any:
        """Reads the parameters [1, ...] for activations of `dtype`, spread over `mesh`."""
        return state.restore_teacher(self._spec, self.run, state.vocab_size(self.run), mesh).params

    def facts(self) -> dict[str, str]:
        """Returns facts for the run that takes the teacher: `SOURCE` and `SOURCE_FINGERPRINT`."""
        manifest = self.run.teacher / str(self._spec.last_step) / step_folders.MANIFEST
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
        # A teacher that the run took over itself keeps the fingerprint of its first source.
        fingerprint = self.run.facts().get(SOURCE_FINGERPRINT) or digest
        return {SOURCE: str(self.run.root), SOURCE_FINGERPRINT: fingerprint}


class ModelSource:
    """Model and tokenizer of an HF folder or a GGUF file; the methods of `RunSource`."""

    run = None

    def __init__(self, path: str | os.PathLike):
        if files.in_bucket(path):
            raise ValueError(f"{path}: a model is read from this machine alone; copy it")
        self._model = llama.ModelFiles(path)

    def checked_sizes(self) -> dict[str, Any]:
        self._model.shapes()
        self.tokenizer()
        options = {"kind": "decoder", **vars(self._model.options)}
        keys = {f"teacher.{key}": options[key] for key in _MODEL_KEYS}
        return {**keys, "data.vocabulary": self._model.options.vocab_size}

    def tokenizer(self) -> Tokenizer:
        path, vocab_size = self._model.path, self._model.options.vocab_size
        if llama.is_gguf(path):
            return gguf_tokenizer.read(self._model.tensors.fields, path, vocab_size=vocab_size)
        return tokenizer.read_folder(path, vocab_size=vocab_size)

    def params(self, dtype: str, mesh: Mesh) -> Any:
        _, params = self._model.read_split(dtype)
        return sharding.put(jax.tree.map(lambda x: x[None], params), mesh)

    def facts(self) -> dict[str, str]:
        digest, path = hashlib.sha256(), self._model.path
        tokenizers = [] if llama.is_gguf(path) else [path / FILE]
        for file_path in (*tokenizers, *self._model.files):
            with file_path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {SOURCE: str(path), SOURCE_FINGERPRINT: digest.hexdigest()[:16]}


TeacherSource = RunSource | ModelSource


def find(path: str | os.PathLike) -> TeacherSource:
    """Opens the teacher source in `path`; raises FileNotFoundError or ValueError without one."""
    config_path = files.path_of(path) / llama.CONFIG
    config = files.read_json(config_path) if config_path.is_file() else None
    is_hf_folder = isinstance(config, dict) and "model_type" in config
    return ModelSource(path) if is_hf_folder or llama.is_gguf(path) else RunSource(path)


def resolve(config: Mapping, workdir: Workdir, *, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Completes and checks a config: a pretrained teacher decides its sizes and vocabulary.

    A folder that took a teacher over before keeps it if the config names no other, and its source
    is not read again.

    Args:
      config: as the user has it.
      workdir: the run's folder, which may not exist yet.
      typed: values of keys below `config`, dotted, that the user typed and that must stay.

    Returns:
      The config that the run has.

    Raises:
      ValueError, FileNotFoundError: `config.teacher.checkpoint` holds no finished teacher or no
        model that fits, or a typed key contradicts the teacher.
    """
    run_config.check_each(config)
    path, sizes = _pretrained(config, workdir)
    resolved, changes = copy.deepcopy(dict(config)), []
    resolved["teacher"]["checkpoint"] = path
    for key, size in sizes.items():
        group, name = key.split(".")
        before, resolved[group][name] = resolved[group][name], size
        if before != size:
            if key in typed:
                raise ValueError(
                    f"`config.{key}` is {before}, but the teacher of {path} "
                    f"(`config.teacher.checkpoint`) has {size}"
                )
            changes.append(f"{key}={size}")
    run_config.check(resolved)
    if changes:
        progress.log(f"the teacher of {path} has {', '.join(changes)}, in place of the config's")
    return resolved


def _pretrained(config: Mapping, workdir: Workdir) -> tuple[str, dict[str, Any]]:
    """Returns the teacher source's path and its sizes by dotted key; ("", {}) without a source."""
    path = config["teacher"]["checkpoint"]
    if DATA_READY in workdir.facts():
        run = workdir.config()
        run_path = run["teacher"]["checkpoint"]
        path = path or run_path
        if path and path == run_path and workdir.teacher.exists():
            with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
                if checkpoints.latest() is not None:
                    return path, _sizes(run)
    if not path:
        return "", {}
    try:
        return path, find(path).checked_sizes()
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"`config.teacher.checkpoint`: {error}") from None


def _sizes(config: Mapping) -> dict[str, Any]:
    """Returns the values of a run's config that its teacher decides, by dotted key."""
    return {
        **{f"teacher.{key}": config["teacher"][key] for key in _MODEL_KEYS},
        **{f"data.{key}": config["data"][key] for key in ("vocabulary", "channels")},
    }


def take_over(spec: RunSpec, workdir: Workdir, mesh: Mesh) -> None:
    """Copies the source's teacher, so that the run's folder holds all that decides its results.

    Raises ValueError if the run took its teacher from other files before.
    """
    with Checkpoints(workdir.teacher) as checkpoints:
        if checkpoints.latest() is not None:
            return
        for fault in checkpoints.damaged():
            progress.log(f"{fault}; taking the teacher over again")
        source = find(spec.teacher.checkpoint)
        facts, before = source.facts(), workdir.facts().get(SOURCE_FINGERPRINT)
        if before not in (None, facts[SOURCE_FINGERPRINT]):
            raise ValueError(
                f"the {SOURCE_FINGERPRINT} in {facts[SOURCE]} is {facts[SOURCE_FINGERPRINT]}, not "
                f"{before} as the run began with; begin another run"
            )
        workdir.add_facts(facts)
        params = source.params(spec.teacher.dtype, mesh)
        checkpoints.save(spec.teacher.last_step, {"params": (params,)}, {})
