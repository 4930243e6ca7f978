"""Tokens a target call and speed-up, counted by decoding itself."""

import time
from collections.abc import Sequence

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
    students = [(loss, seed) for loss, finite in measured.losses.items() for seed in finite]
    prompts, _ = contexts.prompts(spec.evaluation, data)

    def decode(student=None, **options):
        """Returns tokens [K], target calls [K] and seconds; without a student, plain decoding's."""
        draft = None
        if student is not None:
            loss, seed = student
            model, seeds = groups[loss]
            draft = model.student(seeds.index(seed)).module().unrolled()
            options["gamma"] = gamma
        options |= {
            "max_tokens": spec.evaluation.generated_tokens,
            "stop": data.tokenizer.end_of_text,
        }
        decoding = speculative.prepare(target, draft, prompts, **options)
        start = time.perf_counter()
        decoded = decoding.run()
        seconds = time.perf_counter() - start
        return [len(text) for text in decoded.tokens], decoded.counts.target_calls, seconds

    # All students have one shape, so these calls compile for every student and temperature.
    decode()
    decode(students[0])
    sums = dict(measured.sums)
    for context in (name for name in names if name in schema.GENERATED_TEMPERATURES):
        temperature = schema.GENERATED_TEMPERATURES[context]
        rows = {loss: [] for loss, _ in students}
        with progress.bar(context, len(students), unit="students") as advance:
            for seed in spec.seeds:
                # Each seed has texts of its own, so that seeds are a source of noise beside texts.
                texts = (seed * len(prompts) + np.arange(len(prompts))) % 2**32
                options = {"temperature": temperature, "seeds": texts}
                tokens, _, seconds = decode(**options)
                plain_rate = seconds / sum(tokens)
                for student in (student for student in students if student[1] == seed):
                    rows[student[0]].append((*decode(student, **options), plain_rate))
                    advance()
        for loss, columns in rows.items():
            tokens, calls, seconds, plain_rates = (
                np.array(column, np.float64) for column in zip(*columns, strict=True)
            )
            key = Key(context, schema.DECODED_TAU, temperature, gamma)
            sums[loss, key] = Sums(tokens, calls, tokens.mean(axis=0))
            # The batch has one time, so a student is one number, not one a document.
            total = tokens.sum(axis=1, keepdims=True)
            key = Key(context, schema.SPEED_UP, temperature, gamma)
            plain_seconds = total * plain_rates[:, None]
            sums[loss, key] = Sums(plain_seconds, seconds[:, None], total.mean(axis=0))
    return Measurement(measured.losses, sums)
