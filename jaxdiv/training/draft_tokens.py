"""The draft vocabulary of a run: the tokens that occur most in what its students learn from."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, Int64

from jaxdiv import models
from jaxdiv.data import arrays, pipeline
from jaxdiv.runs import processes, progress
from jaxdiv.runs.config_keys import TEACHER_TEXT
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import objectives, on_policy, run_data, sharding
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model

# Facts of a run.
OUTSIDE = "target's probability outside the draft vocabulary, on test documents"
FINGERPRINT = "draft vocabulary's fingerprint"
SAMPLE = 2**13  # tokens of the teacher's own text that are counted, about


@dataclasses.dataclass(frozen=True)
class StoredVocabulary(arrays.StoredArrays):
    """A draft vocabulary as servers of draft models have it.

    Attributes:
      d2t: [K]; class i of the student is the target's token i + d2t[i].
      t2d: [V], whether the student can draft a token.
    """

    d2t: Int64[np.ndarray, " K"]
    t2d: Bool[np.ndarray, " V"]

    KIND = "a draft vocabulary"

    def __post_init__(self):
        types = self.d2t.dtype, self.t2d.dtype
        ids = np.flatnonzero(self.t2d)
        if types != (np.int64, np.bool_) or len(ids) != len(self.d2t):
            raise ValueError("these are no offsets and mask")
        if (ids != np.arange(len(ids)) + self.d2t).any():
            raise ValueError("offsets and mask disagree")


def load(spec: RunSpec, workdir: Workdir) -> models.DraftVocabulary | None:
    """Loads the tokens that a run's students can draft; None for all.

    Raises ValueError if the file is missing, damaged or another run's.
    """
    if not spec.student.vocabulary:
        return None
    stored, facts = StoredVocabulary.load(workdir.draft_vocabulary), workdir.facts()
    if facts.get(FINGERPRINT, stored.fingerprint) != stored.fingerprint:
        raise ValueError(
            f"{workdir.root}: the {FINGERPRINT} is {stored.fingerprint}, not "
            f"{facts[FINGERPRINT]} as the run began with"
        )
    return models.DraftVocabulary.of(np.flatnonzero(stored.t2d), len(stored.t2d))


def prepare(
    spec: RunSpec, workdir: Workdir, data: run_data.RunData, teacher: Model, mesh: Mesh
) -> models.DraftVocabulary | None:
    """Chooses the tokens that a run's students can draft, or loads them; None for all.

    They are those that occur most among the labels of the training split. The target's probability
    of all other tokens, which no student can draft, becomes a fact of the run.
    """
    if not spec.student.vocabulary:
        return None
    if processes.broadcast_from_first(not workdir.draft_vocabulary.exists()):
        counts = _counts(spec, data, teacher, mesh)
        ids = choose(counts, spec.student.vocabulary, data.tokenizer.end_of_text)
        chosen = models.DraftVocabulary.of(ids, data.vocab_size)
        if processes.is_first():
            StoredVocabulary(chosen.offsets, chosen.mask).save(workdir.draft_vocabulary)
        processes.barrier("draft vocabulary")
    vocabulary = load(spec, workdir)
    if processes.broadcast_from_first(OUTSIDE not in workdir.facts()):
        outside = _measure_outside(spec, data, teacher, vocabulary, mesh)
        fingerprint = StoredVocabulary.load(workdir.draft_vocabulary).fingerprint
        workdir.add_facts({FINGERPRINT: fingerprint, OUTSIDE: round(outside, 4)})
        processes.barrier("draft vocabulary measured")
        progress.log(describe(spec, workdir.facts()).strip())
    return vocabulary


def is_prepared(spec: RunSpec, workdir: Workdir) -> bool:
    """Returns whether `prepare` has nothing left to do."""
    is_there = workdir.draft_vocabulary.exists() and OUTSIDE in workdir.facts()
    return is_there or not spec.student.vocabulary


def describe(spec: RunSpec, facts: Mapping[str, Any]) -> str:
    """Returns a sentence, after a space, on what a run's draft vocabulary costs; empty if none."""
    if OUTSIDE not in facts:
        return ""
    outside = facts[OUTSIDE]
    return (
        f" Students draft the {spec.student.vocabulary:,} commonest tokens; {outside:.2%} of the "
        "target's probability lies on others, so that acceptance at temperature 1 is at most "
        f"{1 - outside:.2%}."
    )


def choose(counts: list[np.ndarray], size: int, end_of_text: int) -> Int64[np.ndarray, " K"]:
    """Returns the ids, ascending, of the `size` tokens that occur most, `end_of_text` among them.

    Args:
      counts: [V] each; the later ones decide between equals, and at last the lower id.
      size: K.
      end_of_text: the token that ends a document.
    """
    ids = np.arange(len(counts[0]))
    order = np.lexsort((ids, *(-count for count in reversed(counts)), ids != end_of_text))
    return np.sort(order[:size])


def _counts(spec: RunSpec, data: TextData, teacher: Model, mesh: Mesh) -> list[np.ndarray]:
    """Returns how often each token is a label, [V], as `choose` takes it.

    If the teacher writes a share of the batches, its text counts by that share: `SAMPLE` tokens of
    the text of the first steps.
    """
    count, tokens = functools.partial(np.bincount, minlength=data.vocab_size), data.splits["train"]
    corpus = count(tokens.ids[tokens.is_label(spec.data.loss_on)])
    if spec.on_policy is None or spec.on_policy.writer != TEACHER_TEXT:
        return [corpus]
    share = spec.on_policy.rows / spec.student.batch_size
    written = count(_teacher_text(spec, data, teacher, mesh))
    mixture = (1 - share) * corpus / corpus.sum() + share * written / max(written.sum(), 1)
    return [mixture, corpus]


def _teacher_text(
    spec: RunSpec, data: TextData, teacher: Model, mesh: Mesh
) -> Int[np.ndarray, " n"]:
    """Returns the tokens that the teacher writes in the batches of the first steps."""
    on_teacher, stage = spec.on_policy, spec.student_stage
    start = on_teacher.prompt_tokens - 1
    windows = pipeline.training_windows(data.splits["train"], stage.sequence_length)
    steps = -(-SAMPLE // (on_teacher.rows * (on_teacher.sequence_length - start)))
    steps = min(steps, windows // stage.batch_size)
    rows = sharding.BatchSharding(mesh, steps * stage.batch_size)
    write = on_policy.over_steps(
        on_policy.writer(on_teacher, teacher, None, data.tokenizer.end_of_text), stage.batch_size
    )

    @functools.partial(sharding.jit, mesh=mesh)
    def labels(params, batches):
        batches = write(params, batches, 0)
        labels = jnp.where(batches["weights"] > 0, batches["labels"], -1)
        return sharding.replicate(labels, mesh)

    with progress.bar("teacher's text", 1, unit="texts") as advance:
        batches = data.batches(dataclasses.replace(stage, batch_size=rows.rows), rows.local_rows)
        text = np.asarray(labels(teacher.params, rows.put_local(next(batches))))
        text = text.reshape(steps, stage.batch_size, -1)[:, : on_teacher.rows, start:]
        advance()
    return text[text >= 0]


def _measure_outside(
    spec: RunSpec,
    data: TextData,
    teacher: Model,
    vocabulary: models.DraftVocabulary,
    mesh: Mesh,
) -> float:
    """Measures the teacher's mean probability of tokens outside, on the test documents.

    It is the total variation between the teacher and itself renormalized on the vocabulary.
    """
    evaluation = spec.evaluation
    windows = data.windows(
        "test", tokens=evaluation.document_tokens, documents=evaluation.documents
    )
    rows = sharding.BatchSharding(mesh, spec.student_stage.batch_size)

    @functools.partial(sharding.jit, mesh=mesh)
    def total(params, batch):
        output = teacher.with_params(params)(batch["inputs"])
        shared = objectives.teacher_outputs(output, vocabulary, temperature=1.0)
        best = objectives.features_and_head(shared.output)
        size = vocabulary.size
        value = objectives.means(["tv"], [best], batch, shared.target, vocab_size=size)[0]
        return sharding.replicate(value * batch["weights"].sum(), mesh)

    value, batches = 0.0, -(-len(windows.inputs) // rows.rows)
    with progress.bar("draft vocabulary", batches, unit="batches") as advance:
        for batch in run_data.spread(windows, rows):
            value += float(total(teacher.params, batch))
            advance()
    return value / float(windows.weights.sum())
