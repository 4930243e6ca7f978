"""Data of a run: read, split and tokenized once, then loaded from the run's folder."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdiv import files, schema
from jaxdiv.data import chat_templates, images, pipeline, sources
from jaxdiv.data.chats import Chat
from jaxdiv.data.documents import SPLITS, Documents
from jaxdiv.data.tokenizer import END_OF_TEXT, Tokenizer
from jaxdiv.runs import processes, progress
from jaxdiv.runs.specs import DataSpec, RunSpec, StageSpec
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import sharding, teacher_sources

TOKENIZER = "tokenizer fingerprint"  # a fact of a run
BATCH_FIELDS = ("inputs", "labels", "weights")


@dataclasses.dataclass(frozen=True)
class TextData:
    """Tokenizer and tokens of a run on text.

    Attributes:
      tokenizer: the run's, or its teacher source's.
      splits: tokens of `train`, `validation` and `test`.
      spec: of the run.
    """

    tokenizer: Tokenizer
    splits: dict[str, pipeline.Tokens]
    spec: RunSpec

    @classmethod
    def load(cls, workdir: Workdir) -> "TextData":
        """Loads a run's text as `load` does. Raises ValueError for a run on images."""
        require_text(workdir.spec().data)
        return load(workdir)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def fingerprints(self) -> dict[str, str]:
        """Returns fingerprints by the names of the facts that record them."""
        tokens = {
            f"{split} tokens' fingerprint": self.splits[split].fingerprint for split in SPLITS
        }
        return tokens | {TOKENIZER: self.tokenizer.fingerprint}

    def batches(self, stage: StageSpec, rows: slice | None = None) -> Iterator:
        """Returns the stage's training batches without end, in the order of its seed; all their
        rows, or `rows` alone."""
        writes = self.spec.on_policy if stage.name == self.spec.student_stage.name else None
        return pipeline.batches(
            self.splits["train"],
            sequence_length=stage.sequence_length,
            batch_size=stage.batch_size,
            seed=stage.data_seed,
            rows=rows,
            loss_on=self.spec.data.loss_on,
            prompt_tokens=writes.prompt_tokens if writes else 0,
        )

    def windows(
        self, split: str, *, tokens: int | None = None, documents: int | None = None
    ) -> pipeline.Windows:
        """Returns a split's documents for evaluation: the first `documents`, `tokens` of each."""
        limits = {"max_documents": documents} | ({"max_tokens": tokens} if tokens else {})
        return pipeline.evaluation_windows(
            self.splits[split],
            sequence_length=self.spec.data.sequence_length,
            end_of_text=self.tokenizer.end_of_text,
            loss_on=self.spec.data.loss_on,
            **limits,
        )


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images of a run by split, with the interface of `TextData`.

    An image is a document, and `vocab_size` the number of classes.
    """

    vocab_size: int
    splits: dict[str, images.LabelledImages]

    def fingerprints(self) -> dict[str, str]:
        return {f"{split} images' fingerprint": self.splits[split].fingerprint for split in SPLITS}

    def batches(self, stage: StageSpec, rows: slice | None = None) -> Iterator:
        return images.batches(
            self.splits["train"], batch_size=stage.batch_size, seed=stage.data_seed, rows=rows
        )

    def windows(
        self, split: str, *, tokens: int | None = None, documents: int | None = None
    ) -> pipeline.Windows:
        first = self.splits[split].take(slice(documents))
        return pipeline.Windows(
            **first.batch(), document=np.arange(len(first.labels), dtype=np.int32)
        )


RunData = TextData | ImageData


def load(workdir: Workdir) -> RunData:
    """Loads what `prepare` saved. Raises ValueError if a file is missing, damaged or changed."""
    spec, facts = workdir.spec(), workdir.facts()
    kind, paths = _files(spec.data, workdir)
    splits = {split: kind.load(path) for split, path in paths.items()}
    if spec.data.is_images:
        data = ImageData(spec.data.vocabulary, splits)
    else:
        data = TextData(Tokenizer.load(workdir.tokenizer), splits, spec)
    for fact, fingerprint in data.fingerprints().items():
        if facts.get(fact, fingerprint) != fingerprint:
            raise ValueError(
                f"{workdir.root}: the {fact} is {fingerprint}, not {facts[fact]} as the run began "
                "with"
            )
    return data


def _files(spec: DataSpec, workdir: Workdir) -> tuple[type, dict[str, pathlib.PurePath]]:
    """Returns the type of a run's splits, and the file of each."""
    kind, folder = pipeline.Tokens, workdir.tokens
    if spec.is_images:
        kind, folder = images.LabelledImages, workdir.images
    return kind, {split: folder / f"{split}.npz" for split in SPLITS}


def require_text(spec: DataSpec) -> None:
    """Raises ValueError for a run on images."""
    if spec.is_images:
        raise ValueError(
            "`config.data.kind` is images, of which there are no tokens; this is for runs on text"
        )


def prepare(spec: RunSpec, workdir: Workdir) -> RunData:
    """Reads and splits documents or images, or loads what an earlier start of this run saved.

    Raises:
      ValueError, OSError: the source can't be read, a saved file is damaged, or there is too
        little data for a stage or a context of the run; the message names it.
    """
    if processes.is_first() and DATA_READY not in workdir.facts():
        data, facts = (_read_images if spec.data.is_images else _read_text)(spec, workdir)
        for split, path in _files(spec.data, workdir)[1].items():
            data.splits[split].save(path)
        workdir.add_facts(facts | data.fingerprints())
    processes.barrier("data")
    return load(workdir)


def _read_text(spec: RunSpec, workdir: Workdir) -> tuple[TextData, dict[str, Any]]:
    """Reads documents, makes or takes over the tokenizer, which it saves, tokenizes and checks.

    Returns the data, and facts of the run.
    """
    path = spec.teacher.checkpoint
    source = teacher_sources.find(path) if path else None
    with progress.bar("data", 3, unit="parts") as advance:
        documents = sources.open_documents(
            source=spec.data.source,
            feature=spec.data.feature,
            files=spec.data.files,
            directory=_data_folder(spec.data, workdir, sources.PYTHON_STDLIB),
        )
        advance()
        tokenizer = source.tokenizer() if source else _train_tokenizer(documents, spec.data)
        if documents.chats:
            tokenizer.chat_template = chat_templates.from_config(spec.data.chat_template, tokenizer)
        tokenizer.save(workdir.tokenizer)
        advance()
        # Tokenizing takes far longer than loading what the source's run has of the same documents.
        run = source.run if source else None
        is_same = run and run.facts().get(DATA_READY) == documents.fingerprint
        is_same = is_same and not spec.data.chat_template
        if is_same and all((run.tokens / f"{split}.npz").exists() for split in SPLITS):
            tokens = TextData.load(run).splits
        else:
            tokens = pipeline.tokenize(documents, tokenizer)
        data = TextData(tokenizer, tokens, spec)
        _check(spec, data)
        advance()
    facts = {DATA_READY: documents.fingerprint, **documents.counts}
    if documents.left_out:
        facts["left out of the data"] = documents.left_out
    if documents.counts["unreadable"]:
        progress.log(f"left out of the data: {documents.left_out}")
    for message in _chats_without_prompt(spec, data) if documents.chats else ():
        progress.log(message)
    facts |= {f"{split} tokens": int(tokens[split].ids.size) for split in SPLITS}
    return data, facts


def _chats_without_prompt(spec: RunSpec, data: TextData) -> Iterator[str]:
    """Yields a message for each split whose prompts are needed, if some of its chats have none."""
    lengths = {}
    if spec.on_policy:
        lengths["train"] = spec.on_policy.prompt_tokens
    if set(spec.evaluation.contexts) - {schema.CORPUS}:
        lengths["test"] = spec.evaluation.prompt_tokens
    for split, length in lengths.items():
        tokens = data.splits[split]
        _, document = tokens.prompt_ends(length)
        if count := tokens.documents - len(np.unique(document)):
            yield (
                f"{count} of {tokens.documents} chats of the split `{split}` have no assistant's "
                f"turn after {length} tokens or more, and give no prompt"
            )


def _train_tokenizer(documents: Documents, spec: DataSpec) -> Tokenizer:
    """Trains a tokenizer on the training documents; with ChatML's control tokens if asked."""
    texts, control = documents.train, (END_OF_TEXT,)
    if documents.chats:
        chats = map(Chat.from_document, documents.train)
        texts = [content for chat in chats for _, content in chat.messages]
        if spec.chat_template == chat_templates.CHATML:
            control = chat_templates.CHATML_TOKENS
    return Tokenizer.train(texts, spec.vocabulary, control)


def _read_images(spec: RunSpec, workdir: Workdir) -> tuple[ImageData, dict[str, Any]]:
    """Reads and checks images; returns the data, and facts of the run."""
    with progress.bar("data", 1, unit="parts") as advance:
        pictures = images.open_images(
            source=spec.data.source,
            feature=spec.data.feature,
            label=spec.data.label,
            directory=_data_folder(spec.data, workdir, images.DIGITS),
        )
        data = ImageData(pictures.classes, dict(pictures.splits))
        _check(spec, data)
        advance()
    counts = {f"{split} images": len(pictures.splits[split].labels) for split in SPLITS}
    facts = {DATA_READY: pictures.fingerprint, **counts}
    return data, facts


def _data_folder(spec: DataSpec, workdir: Workdir, prepared_source: str) -> str:
    """Returns the folder of TFDS data: the config's, or the run's if it prepares its source."""
    folder = ""
    if spec.source == prepared_source and not files.in_bucket(workdir.root):
        folder = str(workdir.data)
        # TFDS leaves these behind if a run was killed.
        for incomplete in pathlib.Path(folder).rglob("incomplete.*"):
            shutil.rmtree(incomplete)
    return spec.directory or folder


def _check(spec: RunSpec, data: RunData) -> None:
    """Raises ValueError unless every stage and context has enough data, before hours are spent."""
    source, is_images = spec.data.source, isinstance(data, ImageData)
    if is_images:
        sizes = {"vocabulary": data.vocab_size, "channels": data.splits["train"].pixels.shape[-1]}
        for key, size in sizes.items():
            if getattr(spec.data, key) != size:
                raise ValueError(f"`config.data.{key}` must be {size}, which {source} has")
    for split in ("validation", "test"):
        if is_images and len(data.splits[split].labels) < 2:
            raise ValueError(f"the split `{split}` of {source} needs two images; give more")
        if not is_images and data.splits[split].longest < 2:
            raise ValueError(f"no document of the split `{split}` has two tokens; give more text")
    for split in () if is_images else SPLITS:
        if not data.splits[split].is_label(spec.data.loss_on).any():
            raise ValueError(
                f"no chat of the split `{split}` has an assistant's turn; set "
                "`config.data.loss_on` to all, or give chats with answers"
            )
    checks = {"student": lambda: data.batches(spec.student_stage)}
    if spec.student.vocabulary > data.vocab_size:
        raise ValueError(
            f"`config.student.vocabulary` must be at most the tokenizer's {data.vocab_size} "
            f"tokens, got {spec.student.vocabulary}"
        )
    if not spec.teacher.checkpoint:
        checks = {"teacher": lambda: data.batches(spec.teacher_stage)} | checks
    if set(spec.evaluation.contexts) - {schema.CORPUS, schema.IMAGES}:
        length = spec.evaluation.prompt_tokens
        checks["evaluation.prompt_tokens"] = lambda: pipeline.prompts(
            data.splits["test"], length=length
        )
    for key, check in checks.items():
        try:
            check()
        except ValueError as error:
            raise ValueError(f"`config.{key}`: {error}") from None


def spread(
    rows_of: pipeline.Windows | Any, rows: sharding.BatchSharding
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches of `rows.rows` rows of windows, or of a context, on the mesh of `rows`."""
    arrays = [getattr(rows_of, name) for name in BATCH_FIELDS]
    for block in pipeline.blocks(arrays, rows.rows):
        yield rows.put(dict(zip(BATCH_FIELDS, block, strict=True)))


def validation_batch(stage: StageSpec, data: RunData, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the beginnings of as many validation documents as a batch has rows, on `mesh`."""
    windows = validation_windows(stage, data)
    return next(spread(windows, sharding.BatchSharding(mesh, len(windows.inputs))))


def validation_windows(stage: StageSpec, data: RunData) -> pipeline.Windows:
    """Returns the rows of `validation_batch`."""
    return data.windows("validation", tokens=stage.sequence_length, documents=stage.batch_size)
