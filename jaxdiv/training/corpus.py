"""The data of a run: read and tokenized once, then loaded from its folder."""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

from jax.sharding import Mesh

from jaxdiv import files
from jaxdiv.data import pipeline, sources
from jaxdiv.data.corpus import SPLITS
from jaxdiv.data.tokenizer import Tokenizer
from jaxdiv.training import config as run_config
from jaxdiv.training import donors, processes, progress, sharding
from jaxdiv.training.workdir import DATA_READY, Workdir


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A run's tokenizer and its tokens by split."""

    tokenizer: Tokenizer
    splits: dict[str, pipeline.Tokens]

    @classmethod
    def load(cls, workdir: Workdir) -> "Corpus":
        """What `prepare` put in the run's folder. Raises ValueError if a file is missing, damaged or another's."""
        splits = {split: pipeline.Tokens.load(_path(workdir, split)) for split in SPLITS}
        corpus = cls(Tokenizer.load(workdir.tokenizer), splits)
        known = workdir.facts()
        for fact, fingerprint in corpus.fingerprints().items():
            if known.get(fact, fingerprint) != fingerprint:
                raise ValueError(
                    f"{workdir.root}: the {fact} is {fingerprint}, not {known[fact]} as the run began with"
                )
        return corpus

    def fingerprints(self) -> dict[str, str]:
        """By the names of the facts that record them."""
        tokens = {f"{split} tokens' fingerprint": self.splits[split].fingerprint for split in SPLITS}
        return {**tokens, DATA_READY: self.tokenizer.fingerprint}


def prepare(config: Mapping, workdir: Workdir) -> Corpus:
    """Reads, splits and tokenizes the documents, or loads what an earlier start of this run saved.

    Raises:
      ValueError, OSError: the source can't be read, what was saved is damaged, or there is too little of it for a
        stage or a context of the config; the message names it.
    """
    if processes.is_first() and DATA_READY not in workdir.facts():
        _make(config, workdir)
    processes.meet("data")
    return Corpus.load(workdir)


def _check_enough(config, corpus):
    """Every stage and context that is to come is tried, before hours are spent on the ones before it."""
    evaluation = config["evaluation"]
    with _naming("config.teacher"):
        if not config["teacher"]["checkpoint"]:
            batches(config, "teacher", corpus)
    with _naming("config.student"):
        batches(config, "student", corpus)
    for split in ("validation", "test"):
        if corpus.splits[split].longest < 2:
            raise ValueError(f"no document of the split `{split}` has two tokens; give more text")
    with _naming("config.evaluation.prompt_tokens"):
        if set(run_config.contexts(evaluation["contexts"])) - {"corpus"}:
            pipeline.prompts(corpus.splits["test"], length=evaluation["prompt_tokens"])


@contextlib.contextmanager
def _naming(key):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"`{key}`: {error}") from None


def _path(workdir, split):
    return workdir.tokens / f"{split}.npz"


def _make(config, workdir):
    data, donor = config["data"], config["teacher"]["checkpoint"]
    own = str(workdir.data) if data["source"] == "python_stdlib" and not files.in_bucket(workdir.root) else ""
    for left in pathlib.Path(own).rglob("incomplete.*") if own else ():  # by TFDS, when a run was killed
        shutil.rmtree(left)
    with progress.bar("data", 3, unit="parts") as advance:
        documents = sources.open_documents(
            source=data["source"],
            feature=data["feature"],
            files=data["files"],
            directory=data["directory"] or own,
        )
        advance()
        tokenizer = donors.find(donor).tokenizer() if donor else Tokenizer.train(documents.train, data["vocabulary"])
        tokenizer.save(workdir.tokenizer)
        advance()
        tokens = pipeline.tokenize(documents, tokenizer)
        corpus = Corpus(tokenizer, tokens)
        _check_enough(config, corpus)
        for split in SPLITS:
            tokens[split].save(_path(workdir, split))
        advance()
    workdir.add_facts(
        {
            "data fingerprint": documents.fingerprint,
            **documents.counts,
            **({"left out of the data": documents.left_out} if documents.left_out else {}),
            **{f"{split} tokens": int(tokens[split].ids.size) for split in SPLITS},
            **corpus.fingerprints(),
        }
    )
    if documents.counts["unreadable"]:
        progress.say(f"left out of the data: {documents.left_out}")


BATCH = ("inputs", "labels", "weights")


def batch(arrays: Sequence) -> dict:
    """Arrays in the order of `BATCH`, by name."""
    return dict(zip(BATCH, arrays, strict=True))


def batches(config: Mapping, stage: str, corpus: Corpus, mesh: Mesh | None = None) -> Iterator:
    """The stage's training batches, without end; the order is the seed's.

    Of each the rows that this process's devices in `mesh` need; all without one.
    """
    return pipeline.batches(
        corpus.splits["train"],
        sequence_length=config["data"]["sequence_length"],
        batch_size=config[stage]["batch_size"],
        seed=config["seed"],
        rows=sharding.Rows(mesh, config[stage]["batch_size"]).mine if mesh else None,
    )


def validation_batch(config: Mapping, corpus: Corpus, mesh: Mesh) -> dict:
    """The beginnings of as many validation documents as a student's batch has rows, spread over `mesh`."""
    windows = pipeline.evaluation_windows(
        corpus.splits["validation"],
        sequence_length=config["data"]["sequence_length"],
        max_tokens=config["data"]["sequence_length"],
        max_documents=config["student"]["batch_size"],
        end_of_text=corpus.tokenizer.end_of_text,
    )
    whole = batch([getattr(windows, name) for name in BATCH])
    return sharding.Rows(mesh, len(windows.inputs)).spread(whole)
