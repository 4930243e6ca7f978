"""Where a teacher comes from ready made: a run's folder, or a Llama folder."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxdiv import files, models
from jaxdiv.data import hf_tokenizer
from jaxdiv.data.tokenizer import FILE, Tokenizer
from jaxdiv.models import llama
from jaxdiv.runs import config as run_config
from jaxdiv.runs import manifests, sharding
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training.state import Model, population_shapes

SOURCE, SOURCE_FINGERPRINT = "teacher taken from", "fingerprint of the teacher's files"
_SIZES = (
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


def builder(config: Mapping, vocab_size: int) -> Callable[[nnx.Rngs], nnx.Module]:
    """Makes an untrained teacher of the run's config."""
    return lambda rngs: models.build_teacher(run_config.teacher(config), vocab_size, rngs)


def vocab_size(workdir: Workdir) -> int:
    """The tokens of a run's tokenizer, or the classes of its images."""
    config = workdir.config()
    if run_config.of_images(config):
        return config["data"]["vocabulary"]
    return Tokenizer.load(workdir.tokenizer).vocab_size


def last_step(config: Mapping) -> int:
    """Of the teacher's checkpoint; 0 of one that was taken over, which takes no steps."""
    return 0 if config["teacher"]["checkpoint"] else config["teacher"]["steps"]


def restore(config: Mapping, workdir: Workdir, vocab_size: int, mesh: Mesh | None = None) -> Model:
    """The trained teacher from the run's folder, spread over `mesh`.

    Raises FileNotFoundError if its training did not end.
    """
    return _restore(config, workdir, vocab_size, mesh).student(0)


def _restore(config, workdir, vocab_size, mesh):
    """A population of one, as it was saved."""
    shapes = population_shapes(builder(config, vocab_size), 1, mesh)
    with Checkpoints(workdir.teacher, read_only=True) as checkpoints:
        restored, _ = checkpoints.restore({"params": (shapes.params,)}, step=last_step(config))
    return shapes.with_params(restored["params"][0])


def sizes(config: Mapping) -> dict[str, Any]:
    """What a run's config holds that its teacher decides, by dotted key."""
    return {
        **{f"teacher.{key}": config["teacher"][key] for key in _SIZES},
        **{f"data.{key}": config["data"][key] for key in ("vocabulary", "channels")},
    }


class RunSource:
    """The teacher of another run."""

    def __init__(self, path: str | os.PathLike):
        self.workdir = Workdir(path)
        self._config = self.workdir.config()

    def check(self) -> None:
        """Raises ValueError or FileNotFoundError unless `params` and `tokenizer` can be read."""
        with Checkpoints(self.workdir.teacher, read_only=True) as checkpoints:
            checkpoints.require(last_step(self._config))

    def sizes(self) -> dict[str, Any]:
        """As the function `sizes`."""
        return sizes(self._config)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.workdir.tokenizer)

    def params(self, dtype: str, mesh: Mesh) -> Any:
        """The teacher's parameters [1, ...], for activations of `dtype`, spread over `mesh`."""
        return _restore(self._config, self.workdir, vocab_size(self.workdir), mesh).params

    def facts(self) -> dict[str, str]:
        """What the run that takes the teacher should know of it."""
        inherited = self.workdir.facts().get(SOURCE_FINGERPRINT)
        manifest = self.workdir.teacher / str(last_step(self._config)) / manifests.NAME
        own = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
        return {SOURCE: str(self.workdir.root), SOURCE_FINGERPRINT: inherited or own}


class LlamaSource:
    """The model and tokenizer of a Llama folder; the same methods."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self._arguments = llama.read_config(folder)

    def check(self) -> None:
        llama.check(self.folder)
        self.tokenizer()

    def sizes(self) -> dict[str, Any]:
        arguments = {**self._arguments, "kind": "decoder", "padded_vocabulary": 0}
        made = {f"teacher.{key}": arguments[key] for key in _SIZES}
        return {**made, "data.vocabulary": arguments["vocab_size"]}

    def tokenizer(self) -> Tokenizer:
        return hf_tokenizer.read(self.folder, vocab_size=self._arguments["vocab_size"])

    def params(self, dtype: str, mesh: Mesh) -> Any:
        _, params = llama.read_split(self.folder, dtype=dtype)
        return sharding.place(jax.tree.map(lambda x: x[None], params), mesh)

    def facts(self) -> dict[str, str]:
        digest = hashlib.sha256()
        for path in (
            self.folder / llama.CONFIG,
            self.folder / FILE,
            *llama.weight_files(self.folder),
        ):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {SOURCE: str(self.folder), SOURCE_FINGERPRINT: digest.hexdigest()[:16]}


TeacherSource = RunSource | LlamaSource


def check_same_source(donor: TeacherSource, known: Mapping[str, Any]) -> None:
    """Raises ValueError if a run's `known` facts say that it took its teacher from other files than
    the donor's."""
    before, now = known.get(SOURCE_FINGERPRINT), donor.facts()
    if before not in (None, now[SOURCE_FINGERPRINT]):
        raise ValueError(
            f"the {SOURCE_FINGERPRINT} in {now[SOURCE]} is {now[SOURCE_FINGERPRINT]}, not {before} as the run began "
            f"with; begin another run"
        )


def find(path: str | os.PathLike) -> TeacherSource:
    """What lies in `path`, a run or a Llama; raises FileNotFoundError or ValueError if it is
    neither."""
    config = files.path_of(path) / llama.CONFIG
    held = files.read_json(config) if config.is_file() else None
    if not (isinstance(held, dict) and "model_type" in held):
        return RunSource(path)
    if files.in_bucket(path):
        raise ValueError(f"{path}: a Llama folder is read from this machine alone; copy it")
    return LlamaSource(path)
