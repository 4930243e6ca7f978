"""Pretrained teachers: another run's, an HF folder, or a GGUF file.

A run's folder has a copy of the teacher that it takes over, or refers to its files. A new source is
one class with the methods of `RunSource` and one line in `find`.
"""

import copy
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdiv import files
from jaxdiv.data import gguf_tokenizer, tokenizer
from jaxdiv.data.tokenizer import FILE, Tokenizer
from jaxdiv.models import llama
from jaxdiv.models.layers import FAMILY_OPTIONS
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys, processes, progress, step_folders
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.config_keys import DECODER_SIZES
from jaxdiv.runs.specs import RunSpec, TeacherSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import sharding, state
from jaxdiv.training.state import Model

SOURCE, SOURCE_FINGERPRINT = "teacher taken from", "fingerprint of the teacher's files"  # facts
# Keys of `config.teacher` that describe the model.
_MODEL_KEYS = (
    *("kind", *DECODER_SIZES, "padded_vocabulary", "rope_base", "norm_epsilon"),
    *FAMILY_OPTIONS,
)


_MOST_COPIED = 10**9  # bytes of files that `config.teacher.copy` = auto copies
_BLOCK = 2**26  # bytes between two advances of a bar


@dataclasses.dataclass(frozen=True)
class Reference:
    """The teacher of a run whose folder refers to it.

    Attributes:
      path: of the teacher source.
      fingerprint: of its files.
      parameters: their type in this run, as in `config.teacher.parameters`.
      states: size and modification time of each file, by its path.
    """

    path: str
    fingerprint: str
    parameters: str
    states: Mapping[str, list[int]]

    @classmethod
    def load(cls, workdir: Workdir) -> "Reference | None":
        """Loads a run's reference, or returns None if it has none. Raises ValueError for JSON of
        another form."""
        path = workdir.teacher_reference
        if not path.is_file():
            return None
        value, names = files.read_json(path), [field.name for field in dataclasses.fields(cls)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise ValueError(f"{path} must hold {', '.join(names)}")
        return cls(**value)

    def open(self) -> "TeacherSource":
        """Opens the source. Raises ValueError if it is gone or its files are others."""
        if not pathlib.Path(self.path).exists():
            raise ValueError(
                f"the run refers to the teacher in {self.path}, which is not there; put it back, "
                "or begin a run with `config.teacher.copy` yes"
            )
        source = find(self.path)
        # Reading all of a large model takes a minute, which an unchanged one does not need.
        if _states(source.files) != self.states and source.fingerprint() != self.fingerprint:
            raise ValueError(
                f"the files of the teacher in {self.path} are others than the run began with; put "
                "them back, or begin another run"
            )
        return source


def _states(paths: list[pathlib.Path]) -> dict[str, list[int]]:
    """Returns size and modification time by path."""
    states = {str(path): path.stat() for path in paths}
    return {path: [state.st_size, state.st_mtime_ns] for path, state in states.items()}


class RunSource:
    """The teacher of another run, with its tokenizer, from the path `config.teacher.checkpoint`.

    Attributes:
      run: the run whose tokens may be read instead of tokenizing anew; None if there is none.
      spec: of that run; None if there is none.
      reference: to the files that the run itself refers to; None if it has the teacher.
    """

    def __init__(self, path: str | os.PathLike):
        self.run = Workdir(path)
        self._config = self.run.config()
        self.spec = RunSpec.from_config(self._config)
        self.reference = Reference.load(self.run)

    def checked_sizes(self) -> dict[str, Any]:
        """Returns the values that the teacher decides, by dotted key of the config.

        Raises ValueError or FileNotFoundError unless parameters and tokenizer can be read.
        """
        if self.reference:
            self.reference.open()
        else:
            with Checkpoints(self.run.teacher, read_only=True) as checkpoints:
                checkpoints.require(self.spec.teacher.last_step)
        return _sizes(self._config)

    def tokenizer(self) -> Tokenizer:
        """Reads the tokenizer."""
        return Tokenizer.load(self.run.tokenizer)

    @property
    def files(self) -> list[pathlib.PurePath]:
        """All files of the teacher."""
        return list(files.below(self._step).values())

    @property
    def _step(self) -> pathlib.PurePath:
        return self.run.teacher / str(self.spec.teacher.last_step)

    def params(self, parameters: str, mesh: Mesh, part: str | None = None) -> Any:
        """Reads the parameters, spread over `mesh`, in the type of `config.teacher.parameters`.

        `part` is the only one of them that is read, such as `head`; None for all.
        """
        vocab_size = state.vocab_size(self.run)
        params = _restore(self.spec.teacher, self.run, vocab_size, mesh, part)
        return cast(params, parameters)

    def fingerprint(self) -> str:
        """Returns the fingerprint of the teacher's files, or of those that it was read from and
        the type that they were cast to."""
        if SOURCE_FINGERPRINT in (facts := self.run.facts()):
            fingerprint, parameters = facts[SOURCE_FINGERPRINT], self.spec.teacher.parameters
            if parameters == config_keys.STORED:
                return fingerprint
            return hashlib.sha256(f"{fingerprint} {parameters}".encode()).hexdigest()[:16]
        manifest = self._step / step_folders.MANIFEST
        return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]


class ModelSource:
    """Model and tokenizer of an HF folder or a GGUF file; the methods of `RunSource`."""

    run, spec, reference = None, None, None

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

    @property
    def files(self) -> list[pathlib.Path]:
        path = self._model.path
        return [*([] if llama.is_gguf(path) else [path / FILE]), *self._model.files]

    def params(self, parameters: str, mesh: Mesh, part: str | None = None) -> Any:
        count = 1 if part else len(self._model.tensors.shapes)
        with progress.bar("reading", count, unit="tensors") as advance:
            _, params = self._model.read_split(
                parameters=parameters,
                shardings=functools.partial(sharding.shardings, mesh=mesh, stacked=False),
                advance=advance,
                part=part,
            )
        return params

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        blocks = [-(-path.stat().st_size // _BLOCK) for path in self.files]
        with progress.bar("checksums", sum(blocks), unit="x 64 MiB") as advance:
            for path, count in zip(self.files, blocks, strict=True):
                part = hashlib.sha256()
                with path.open("rb") as file:
                    for _ in range(count):
                        part.update(file.read(_BLOCK))
                        advance()
                digest.update(part.digest())
        return digest.hexdigest()[:16]


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
        if path and path == run_path and _has_teacher(workdir):
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


def _has_teacher(workdir: Workdir) -> bool:
    """Returns whether a run has taken its teacher over, as a copy or by a reference."""
    if workdir.teacher_reference.is_file():
        return True
    if not workdir.teacher.exists():
        return False
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        return checkpoints.latest() is not None


def take_over(spec: RunSpec, workdir: Workdir, mesh: Mesh) -> None:
    """Copies the source's teacher to the run's folder, or lets the folder refer to it.

    Raises ValueError if the run took its teacher from other files before, or refers to files that
    are gone.
    """
    if reference := Reference.load(workdir):
        reference.open()
        return
    with Checkpoints(workdir.teacher) as checkpoints:
        if checkpoints.latest() is not None:
            return
        for fault in checkpoints.damaged():
            progress.log(f"{fault}; taking the teacher over again")
        path, before = spec.teacher.checkpoint, workdir.facts().get(SOURCE_FINGERPRINT)
        source = find(path)
        fingerprint = source.fingerprint()
        if before not in (None, fingerprint):
            raise ValueError(
                f"the {SOURCE_FINGERPRINT} in {path} is {fingerprint}, not {before} as the run "
                "began with; begin another run"
            )
        workdir.add_facts({SOURCE: path, SOURCE_FINGERPRINT: fingerprint})
        if is_copied(spec.teacher, source, workdir):
            params = source.params(spec.teacher.parameters, mesh)
            stacked = _each(lambda x: x[None], params)
            checkpoints.save(spec.teacher.last_step, {"params": (stacked,)}, {})
            return
    if processes.is_first():
        reference = _refer(spec.teacher, source, fingerprint)
        files.write_json(workdir.teacher_reference, dataclasses.asdict(reference))
    processes.barrier("teacher referred to")


def is_copied(spec: TeacherSpec, source: TeacherSource, workdir: Workdir) -> bool:
    """Returns whether a run's folder gets a copy of its teacher."""
    if any(files.in_bucket(path) for path in (spec.checkpoint, workdir.root)):
        return True  # which another machine can read, too
    if spec.copy == config_keys.AUTO:
        return sum(path.stat().st_size for path in _origin(source).files) <= _MOST_COPIED
    return spec.copy == config_keys.COPY


def _origin(source: TeacherSource) -> TeacherSource:
    """Returns the source that has the teacher's files."""
    return source.reference.open() if source.reference else source


def _refer(spec: TeacherSpec, source: TeacherSource, fingerprint: str) -> Reference:
    """Returns the reference of a run to a source, or to the files that this refers to."""
    if before := source.reference:
        is_stored = spec.parameters == config_keys.STORED
        parameters = before.parameters if is_stored else spec.parameters
        return dataclasses.replace(before, parameters=parameters)
    path = pathlib.Path(spec.checkpoint).absolute()
    states = _states(find(path).files)
    return Reference(str(path), fingerprint, spec.parameters, states)


def restore(
    spec: TeacherSpec, workdir: Workdir, vocab_size: int, mesh: Mesh | None = None
) -> Model:
    """Restores a run's teacher from its folder, or from where that refers to, spread over `mesh`.

    Raises:
      FileNotFoundError: its training did not end.
      ValueError: the files that the folder refers to are gone or are others.
    """
    mesh = mesh or sharding.single_device_mesh()
    shapes = state.population_shapes(state.teacher_builder(spec, vocab_size), 1, mesh)
    return shapes.with_params(_restore(spec, workdir, vocab_size, mesh))


def restore_head(
    spec: TeacherSpec, workdir: Workdir, vocab_size: int, mesh: Mesh
) -> dict[str, jax.Array]:
    """Restores the head alone as `restore` does, by its name: `head` [D, P], or `embedding` [P, D]
    if that is the head as well."""
    part = "embedding" if spec.tied_head else "head"
    (head,) = jax.tree.leaves(_restore(spec, workdir, vocab_size, mesh, part))
    return {part: head}


def _restore(
    spec: TeacherSpec, workdir: Workdir, vocab_size: int, mesh: Mesh, part: str | None = None
) -> Any:
    """Restores a run's teacher's parameters, or the one named `part`, as a mapping."""
    if reference := Reference.load(workdir):
        return reference.open().params(reference.parameters, mesh, part)
    build = state.teacher_builder(spec, vocab_size)
    shapes = state.population_shapes(build, 1, mesh).params
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        target = {"params": ({part: shapes[part]} if part else shapes,)}
        is_copy = bool(spec.checkpoint)
        tree, _ = checkpoints.restore(target, step=spec.last_step, stored_types=is_copy)
    return _each(lambda x: x[0], tree["params"][0])


def _each(function: Callable[[jax.Array], jax.Array], params: Any) -> Any:
    """Maps `function` over arrays, each of which it frees, so that no teacher is held twice."""

    def move(x):
        result = function(x)
        x.delete()
        return result

    return jax.tree.map(move, params)


def cast(params: Any, parameters: str) -> Any:
    """Returns parameters of a model in the type of `config.teacher.parameters`."""
    if parameters == config_keys.STORED:
        return params

    def to_type(path, x):
        is_scale = "scale" in (getattr(entry, "key", None) for entry in path)
        return x if is_scale else x.astype(parameters)

    return jax.tree_util.tree_map_with_path(to_type, params)
