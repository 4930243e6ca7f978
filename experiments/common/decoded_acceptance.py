"""Tokens a target call and speed-up, counted by decoding itself."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from jaxdiv import schema, speculative
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.runs import progress
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import teacher
from jaxdiv.training.run_data import TextData


def with_decoding(
    run: Workdir, measured: Measurement, *, names: Sequence[str], gamma: int
) -> Measurement:
    """Adds `decoded_tau` and `speed_up` of every measured student to a run's measurement.

    All prompts of a context are one batch, decoded by rejection sampling. A text of n tokens counts
    its n tokens and the target calls that began before the n-th, as `tau` does. The time is
    compared with plain decoding, which is timed anew for each student seed.

    Args:
      run: the run.
      measured: its measurement so far.
      names: contexts; those of text that no teacher wrote are left out.
      gamma: drafts a round.
    """
    spec, data = run.spec(), TextData.load(run)
    target = teacher.restore(spec.teacher, run, data.tokenizer.vocab_size).module().unrolled()
    groups = {
        loss: (model, seeds) for loss, model, seeds in measurement.student_groups(spec, run, data)
    }
    pairs = [(loss, seed) for loss, finite in measured.losses.items() for seed in finite]
    prompts, _ = contexts.prompts(spec.evaluation, data)
    limits = {
        "max_tokens": spec.evaluation.generated_tokens,
        "stop": data.tokenizer.end_of_text,
    }

    def student(loss, seed):
        model, seeds = groups[loss]
        return model.student(seeds.index(seed)).module().unrolled()

    def decode(draft, **options):
        """Returns (the decoded texts, the seconds that it took)."""
        decoding = speculative.prepare(target, draft, prompts, **limits, **options)
        start = time.perf_counter()
        return decoding.run(), time.perf_counter() - start

    def decode_all(context):
        """Returns (tokens [K], calls [K], seconds, plain decoding's seconds a token) by student."""
        rows = {loss: [] for loss, _ in pairs}
        with progress.bar(context, len(pairs), unit="students") as advance:
            for seed in spec.seeds:
                # Each seed has texts of its own, so that seeds are a source of noise beside texts.
                texts = (seed * len(prompts) + np.arange(len(prompts))) % 2**32
                options = {"temperature": schema.GENERATED_TEMPERATURES[context], "seeds": texts}
                plain, seconds = decode(None, **options)
                plain_rate = seconds / sum(map(len, plain.tokens))
                for loss in (loss for loss, other in pairs if other == seed):
                    decoded, seconds = decode(student(loss, seed), gamma=gamma, **options)
                    tokens = [len(text) for text in decoded.tokens]
                    rows[loss].append((tokens, decoded.counts.target_calls, seconds, plain_rate))
                    advance()
        return rows

    # All students have one shape, so these calls compile for every student and temperature.
    decode(None)
    decode(student(*pairs[0]), gamma=gamma)
    sums = dict(measured.sums)
    for context in names:
        if context in schema.GENERATED_TEMPERATURES:
            for loss, rows in decode_all(context).items():
                sums |= {(loss, key): value for key, value in _sums(context, gamma, rows)}
    return Measurement(measured.losses, sums)


def _sums(context: str, gamma: int, rows: Sequence[tuple]) -> Iterator[tuple[Key, Sums]]:
    """Yields the sums of both measures over one loss's students, from their rows."""
    temperature = schema.GENERATED_TEMPERATURES[context]
    tokens, calls = (np.array([row[i] for row in rows], np.float64) for i in (0, 1))
    key = Key(context, schema.DECODED_TAU, temperature, gamma)
    yield key, Sums(tokens, calls, tokens.mean(axis=0))
    # The batch has one time, so a student is one number, not one a document.
    total = tokens.sum(axis=1, keepdims=True)
    seconds, plain_rate = (np.array([row[i] for row in rows])[:, None] for i in (2, 3))
    key = Key(context, schema.SPEED_UP, temperature, gamma)
    yield key, Sums(total * plain_rate, seconds, total.mean(axis=0))
