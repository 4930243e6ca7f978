"""The data of a run: read once, texts also tokenized, then loaded from its folder."""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from jaxdiv import files
from jaxdiv.data import images, pipeline, sources
from jaxdiv.data.documents import SPLITS
from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys, processes, progress, sharding
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import teacher_sources

TOKENIZER = "tokenizer fingerprint"  # a fact


@dataclasses.dataclass(frozen=True)
class TextData:
    """A run's tokenizer and its tokens by split."""

    tokenizer: Tokenizer
    splits: dict[str, pipeline.Tokens]

    @classmethod
    def load(cls, workdir: Workdir) -> "TextData":
        """What `prepare` put in the run's folder. Raises ValueError if a file is missing, damaged
        or another's."""
        refuse_images(workdir.config())
        splits = {split: pipeline.Tokens.load(_path(workdir.tokens, split)) for split in SPLITS}
        return _as_begun(cls(Tokenizer.load(workdir.tokenizer), splits), workdir)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def fingerprints(self) -> dict[str, str]:
        """By the names of the facts that record them."""
        tokens = {
            f"{split} tokens' fingerprint": self.splits[split].fingerprint for split in SPLITS
        }
        return {**tokens, TOKENIZER: self.tokenizer.fingerprint}

    def batches(self, config: Mapping, stage: str, rows: slice | None) -> Iterator:
        """The stage's training batches, of which `rows`."""
        length, size = config["data"]["sequence_length"], config[stage]["batch_size"]
        return pipeline.batches(
            self.splits["train"],
            sequence_length=length,
            batch_size=size,
            seed=config["seed"],
            rows=rows,
        )

    def windows(
        self,
        split: str,
        config: Mapping,
        *,
        tokens: int | None = None,
        documents: int | None = None,
    ) -> pipeline.Windows:
        """A split's documents for evaluation, of each at most so many `tokens`, at most so many of
        them."""
        limits = {"max_documents": documents} | ({"max_tokens": tokens} if tokens else {})
        return pipeline.evaluation_windows(
            self.splits[split],
            sequence_length=config["data"]["sequence_length"],
            end_of_text=self.tokenizer.end_of_text,
            **limits,
        )


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A run's images by split, where it is about images: what `TextData` is of text, a document an
    image."""

    classes: int
    splits: dict[str, images.LabelledImages]

    @classmethod
    def load(cls, workdir: Workdir) -> "ImageData":
        """As `TextData.load`."""
        splits = {
            split: images.LabelledImages.load(_path(workdir.images, split)) for split in SPLITS
        }
        return _as_begun(cls(workdir.config()["data"]["vocabulary"], splits), workdir)

    @property
    def vocab_size(self) -> int:
        return self.classes

    def fingerprints(self) -> dict[str, str]:
        return {f"{split} images' fingerprint": self.splits[split].fingerprint for split in SPLITS}

    def batches(self, config: Mapping, stage: str, rows: slice | None) -> Iterator:
        size = config[stage]["batch_size"]
        return images.batches(self.splits["train"], batch_size=size, seed=config["seed"], rows=rows)

    def windows(
        self,
        split: str,
        config: Mapping,
        *,
        tokens: int | None = None,
        documents: int | None = None,
    ) -> pipeline.Windows:
        chosen = self.splits[split].take(slice(documents))
        return pipeline.Windows(
            **chosen.batch(), document=np.arange(len(chosen.labels), dtype=np.int32)
        )


RunData = TextData | ImageData


def load(workdir: Workdir) -> RunData:
    """What `prepare` put in the run's folder. Raises ValueError if a file is missing, damaged or
    another's."""
    return (ImageData if run_config.of_images(workdir.config()) else TextData).load(workdir)


def refuse_images(config: Mapping) -> None:
    """Raises ValueError for a run on images, where something is for runs on text."""
    if run_config.of_images(config):
        raise ValueError(
            "`config.data.kind` is images, of which there are no tokens; this is for runs on text"
        )


def _as_begun(data, workdir):
    known = workdir.facts()
    for fact, fingerprint in data.fingerprints().items():
        if known.get(fact, fingerprint) != fingerprint:
            raise ValueError(
                f"{workdir.root}: the {fact} is {fingerprint}, not {known[fact]} as the run began with"
            )
    return data


def prepare(config: Mapping, workdir: Workdir) -> RunData:
    """Reads, splits and tokenizes the documents or images, or loads what an earlier start of this
    run saved.

    Raises:
      ValueError, OSError: the source can't be read, what was saved is damaged, or there is too
        little of it for a stage or a context of the config; the message names it.
    """
    if processes.is_first() and DATA_READY not in workdir.facts():
        (_make_gallery if run_config.of_images(config) else _make)(config, workdir)
    processes.barrier("data")
    return load(workdir)


def _check_batches(config, data):
    """Every stage that is to come is tried, before hours are spent on the ones before it."""
    with _naming("config.teacher"):
        if not config["teacher"]["checkpoint"]:
            batches(config, "teacher", data)
    with _naming("config.student"):
        batches(config, "student", data)


def _check_enough(config, corpus):
    """So is every context."""
    evaluation = config["evaluation"]
    _check_batches(config, corpus)
    for split in ("validation", "test"):
        if corpus.splits[split].longest < 2:
            raise ValueError(f"no document of the split `{split}` has two tokens; give more text")
    with _naming("config.evaluation.prompt_tokens"):
        if set(config_keys.names_in(evaluation["contexts"])) - {"corpus"}:
            pipeline.prompts(corpus.splits["test"], length=evaluation["prompt_tokens"])


@contextlib.contextmanager
def _naming(key):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"`{key}`: {error}") from None


def _path(folder, split):
    return folder / f"{split}.npz"


def _own_folder(config, workdir, source):
    """Where the run prepares `source` for itself, if that is what it reads; else the config's
    folder."""
    own = (
        str(workdir.data)
        if config["data"]["source"] == source and not files.in_bucket(workdir.root)
        else ""
    )
    for left in (
        pathlib.Path(own).rglob("incomplete.*") if own else ()
    ):  # by TFDS, when a run was killed
        shutil.rmtree(left)
    return config["data"]["directory"] or own


def _make_gallery(config, workdir):
    data = config["data"]
    with progress.bar("data", 1, unit="parts") as advance:
        found = images.open_images(
            source=data["source"],
            feature=data["feature"],
            label=data["label"],
            directory=_own_folder(config, workdir, images.DIGITS),
        )
        gallery = ImageData(found.classes, dict(found.splits))
        _check_sizes(config, gallery)
        for split in SPLITS:
            gallery.splits[split].save(_path(workdir.images, split))
        advance()
    counts = {f"{split} images": len(gallery.splits[split].labels) for split in SPLITS}
    workdir.add_facts({DATA_READY: found.fingerprint, **counts, **gallery.fingerprints()})


def _check_sizes(config, gallery):
    channels = gallery.splits["train"].pixels.shape[-1]
    for key, here in (("vocabulary", gallery.classes), ("channels", channels)):
        if config["data"][key] != here:
            raise ValueError(
                f"`config.data.{key}` must be {here}, which {config['data']['source']} has"
            )
    for split in ("validation", "test"):
        if len(gallery.splits[split].labels) < 2:
            raise ValueError(
                f"the split `{split}` of {config['data']['source']} needs two images; give more"
            )
    _check_batches(config, gallery)


def _make(config, workdir):
    data, checkpoint = config["data"], config["teacher"]["checkpoint"]
    donor = teacher_sources.find(checkpoint) if checkpoint else None
    with progress.bar("data", 3, unit="parts") as advance:
        documents = sources.open_documents(
            source=data["source"],
            feature=data["feature"],
            files=data["files"],
            directory=_own_folder(config, workdir, sources.PYTHON_STDLIB),
        )
        advance()
        tokenizer = (
            donor.tokenizer() if donor else Tokenizer.train(documents.train, data["vocabulary"])
        )
        tokenizer.save(workdir.tokenizer)
        advance()
        tokens = _tokens(documents, tokenizer, donor)
        corpus = TextData(tokenizer, tokens)
        _check_enough(config, corpus)
        for split in SPLITS:
            tokens[split].save(_path(workdir.tokens, split))
        advance()
    workdir.add_facts(
        {
            DATA_READY: documents.fingerprint,
            **documents.counts,
            **({"left out of the data": documents.left_out} if documents.left_out else {}),
            **{f"{split} tokens": int(tokens[split].ids.size) for split in SPLITS},
            **corpus.fingerprints(),
        }
    )
    if documents.counts["unreadable"]:
        progress.log(f"left out of the data: {documents.left_out}")


def _tokens(documents, tokenizer, donor):
    """Those of the run whose tokenizer it is, if it has the same documents; else made, which takes
    far longer."""
    lender = donor.workdir if isinstance(donor, teacher_sources.RunSource) else None
    there = lender and all(_path(lender.tokens, split).exists() for split in SPLITS)
    if there and lender.facts().get(DATA_READY) == documents.fingerprint:
        return TextData.load(lender).splits
    return pipeline.tokenize(documents, tokenizer)


BATCH_FIELDS = ("inputs", "labels", "weights")


def batch(arrays: Sequence) -> dict:
    """Arrays in the order of `BATCH_FIELDS`, by name."""
    return dict(zip(BATCH_FIELDS, arrays, strict=True))


def batches(config: Mapping, stage: str, data: RunData, mesh: Mesh | None = None) -> Iterator:
    """The stage's training batches, without end; the order is the seed's.

    Of each the rows that this process's devices in `mesh` need; all without one.
    """
    return data.batches(
        config, stage, sharding.Rows(mesh, config[stage]["batch_size"]).mine if mesh else None
    )


def validation_batch(config: Mapping, data: RunData, mesh: Mesh) -> dict:
    """The beginnings of as many validation documents as a student's batch has rows, spread over
    `mesh`."""
    limits = {
        "tokens": config["data"]["sequence_length"],
        "documents": config["student"]["batch_size"],
    }
    windows = data.windows("validation", config, **limits)
    whole = batch([getattr(windows, name) for name in BATCH_FIELDS])
    return sharding.Rows(mesh, len(windows.inputs)).spread(whole)
