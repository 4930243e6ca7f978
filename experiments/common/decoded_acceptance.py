"""Tokens per target call and speed-up, counted by decoding itself."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdiv import schema, speculative
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.models import Decoder, Drafter
from jaxdiv.runs import progress
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import teacher
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model


class DecodedBatch(NamedTuple):
    """Counts and time of one decoding of all prompts: tokens [K], target calls [K] and seconds."""

    tokens: np.ndarray
    calls: np.ndarray
    seconds: float


@dataclasses.dataclass(frozen=True)
class StudentDecoder:
    """Decodes a run's prompts in one batch, with or without a student's drafts.

    Attributes:
      target: the run's teacher.
      groups: by loss, its students and their seeds.
      prompts: tokens of each.
      limits: `max_tokens` and `stop` of `speculative.prepare`.
      gamma: drafts a round.
    """

    target: Decoder
    groups: Mapping[str, tuple[Model, Sequence[int]]]
    prompts: np.ndarray
    limits: Mapping[str, int]
    gamma: int

    @classmethod
    def from_run(cls, run: Workdir, gamma: int) -> "StudentDecoder":
        spec, data = run.spec(), TextData.load(run)
        target = teacher.restore(spec.teacher, run, data.tokenizer.vocab_size).module().unrolled()
        groups = measurement.student_groups(spec, run, data)
        by_loss = {loss: (model, seeds) for loss, model, seeds in groups}
        prompts, _ = contexts.prompts(spec.evaluation, data)
        limits = {
            "max_tokens": spec.evaluation.generated_tokens,
            "stop": data.tokenizer.end_of_text,
        }
        return cls(target, by_loss, prompts, limits, gamma)

    def plain(self, **sampling: Any) -> DecodedBatch:
        """Decodes without drafts."""
        return self._run(None, **sampling)

    def drafted(self, loss: str, seed: int, **sampling: Any) -> DecodedBatch:
        """Decodes with the drafts of one student."""
        model, seeds = self.groups[loss]
        draft = model.student(seeds.index(seed)).module().unrolled()
        return self._run(draft, gamma=self.gamma, **sampling)

    def _run(self, draft: Drafter | None, **options: Any) -> DecodedBatch:
        decoding = speculative.prepare(self.target, draft, self.prompts, **self.limits, **options)
        start = time.perf_counter()
        decoded = decoding.run()
        seconds = time.perf_counter() - start
        tokens = np.array([len(text) for text in decoded.tokens])
        return DecodedBatch(tokens, decoded.counts.target_calls, seconds)


def with_decoding(
    run: Workdir, measured: Measurement, *, names: Sequence[str], gamma: int
) -> Measurement:
    """Adds `decoded_tau` and `speed_up` of every measured student to a run's measurement.

    All prompts of a context are one batch, decoded by rejection sampling. A text of n tokens counts
    its n tokens and the target calls that began before the n-th, as `tau` does. The time is
    compared with plain decoding, which is timed anew for each student seed.

    Args:
      run: the run.
      measured: its measurement so far; one without finite students is returned as it is.
      names: contexts; those of text that no teacher wrote are left out.
      gamma: drafts a round.
    """
    students = [(loss, seed) for loss, finite in measured.losses.items() for seed in finite]
    if not students:
        return measured
    decoder = StudentDecoder.from_run(run, gamma)
    # All students have one shape, so these calls compile for every student and temperature.
    decoder.plain()
    decoder.drafted(*students[0])
    sums = dict(measured.sums)
    for context in (name for name in names if name in schema.GENERATED_TEMPERATURES):
        for loss, columns in _measure_context(decoder, context, students, run.spec().seeds).items():
            entries = _sums(context, gamma, *columns)
            sums |= {(loss, key): value for key, value in entries.items()}
    return Measurement(measured.losses, sums)


def _measure_context(
    decoder: StudentDecoder, context: str, students: Sequence[tuple[str, int]], seeds: Sequence[int]
) -> dict[str, list[np.ndarray]]:
    """Decodes at a context's temperature with every student.

    Returns:
      The columns of each loss's S students: tokens [S, K], target calls [S, K], seconds [S], and
      plain decoding's seconds a token [S].
    """
    rows = {loss: [] for loss, _ in students}
    with progress.bar(context, len(students), unit="students") as advance:
        for seed in seeds:
            # Each seed has texts of its own, so that seeds are a source of noise beside texts.
            count = len(decoder.prompts)
            sampling = {
                "temperature": schema.GENERATED_TEMPERATURES[context],
                "seeds": (seed * count + np.arange(count)) % 2**32,
            }
            plain = decoder.plain(**sampling)
            plain_rate = plain.seconds / plain.tokens.sum()
            for loss in (loss for loss, finite in students if finite == seed):
                rows[loss].append((*decoder.drafted(loss, seed, **sampling), plain_rate))
                advance()
    return {
        loss: [np.array(column, np.float64) for column in zip(*batches, strict=True)]
        for loss, batches in rows.items()
    }


def _sums(
    context: str,
    gamma: int,
    tokens: Float[np.ndarray, "S K"],
    calls: Float[np.ndarray, "S K"],
    seconds: Float[np.ndarray, " S"],
    plain_rates: Float[np.ndarray, " S"],
) -> dict[Key, Sums]:
    """Returns the two measures of a loss as sums, from the columns of `_measure_context`."""
    temperature = schema.GENERATED_TEMPERATURES[context]
    # The batch has one time, so a student is one number, not one a document.
    total = tokens.sum(axis=1, keepdims=True)
    plain_seconds = total * plain_rates[:, None]
    return {
        Key(context, schema.DECODED_TAU, temperature, gamma): Sums(
            tokens, calls, tokens.mean(axis=0)
        ),
        Key(context, schema.SPEED_UP, temperature, gamma): Sums(
            plain_seconds, seconds[:, None], total.mean(axis=0)
        ),
    }
