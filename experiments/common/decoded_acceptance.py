"""Tokens a target call by decoding itself, beside the recursion's, and what that gains in time."""

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
    """Adds `decoded_tau` and `speed_up` of every measured student to what was measured.

    All prompts of a context are one batch, decoded by rejection sampling of `gamma` drafts a round.
    A text of n tokens counts its n tokens and the target calls begun before the n-th, as `tau`
    does. The time is compared with that of plain decoding, which is measured anew for each student
    seed.

    Args:
      run: the run.
      measured: of the same run.
      names: contexts, of which the corpus is passed over.
      gamma: drafts a round.
    """
    config, corpus = run.config(), TextData.load(run)
    model = teacher.restore(config, run, corpus.tokenizer.vocab_size)
    target = model.module().unrolled()
    groups = {
        loss: (model, [seeds.index(seed) for seed in measured.losses[loss]], measured.losses[loss])
        for loss, model, seeds in measurement.student_groups(config, run, corpus)
        if measured.losses[loss]
    }
    prompts, _ = contexts.prompts(config, corpus)
    how = {
        "max_tokens": config["evaluation"]["generated_tokens"],
        "stop": corpus.tokenizer.end_of_text,
    }
    _compile(target, groups, prompts, {**how, "gamma": gamma})
    sums = dict(measured.sums)
    for name in names:
        if name in schema.GENERATED_TEMPERATURES:
            found = _decode_all(
                target,
                groups,
                prompts,
                name,
                {**how, "temperature": schema.GENERATED_TEMPERATURES[name]},
                gamma,
            )
            for loss, made in found.items():
                sums |= {(loss, key): value for key, value in _sums(name, gamma, made)}
    return Measurement(measured.losses, sums)


def _compile(target, groups, prompts, how):
    """All students have one shape: what one of them compiles serves the others, at every
    temperature."""
    model, (place, *_), _ = next(iter(groups.values()))
    for draft in (None, model.student(place).module().unrolled()):
        speculative.decode(target, draft, prompts, **how)


def _decode_all(target, groups, prompts, name, how, gamma):
    """Loss to one (tokens [K], calls [K], seconds, plain decoding's seconds a token) for each of
    its students."""
    made = {loss: [] for loss in groups}
    with progress.bar(
        name, sum(len(seeds) for *_, seeds in groups.values()), unit="students"
    ) as advance:
        for seed in dict.fromkeys(seed for *_, seeds in groups.values() for seed in seeds):
            # Each seed's texts are its own, so that the interval's two sources are what they are
            # called.
            how = {**how, "seeds": (seed * len(prompts) + np.arange(len(prompts))) % 2**32}
            plain, seconds = _timed(target, None, prompts, how)
            plain_rate = seconds / sum(map(len, plain.tokens))
            for loss, (model, places, seeds) in groups.items():
                if seed in seeds:
                    draft = model.student(places[seeds.index(seed)]).module().unrolled()
                    decoded, seconds = _timed(target, draft, prompts, {**how, "gamma": gamma})
                    tokens = np.array([len(text) for text in decoded.tokens])
                    made[loss].append((tokens, decoded.counts.target_calls, seconds, plain_rate))
                    advance()
    return made


def _timed(target, draft, prompts, how):
    decoding = speculative.prepare(target, draft, prompts, **how)
    start = time.perf_counter()
    return decoding.run(), time.perf_counter() - start


def _sums(context, gamma, made):
    temperature = schema.GENERATED_TEMPERATURES[context]
    tokens, calls = (np.array([student[i] for student in made], np.float64) for i in (0, 1))
    yield Key(context, "decoded_tau", temperature, gamma), Sums(tokens, calls, tokens.mean(axis=0))
    # One number a student: the batch's time is no document's.
    total = tokens.sum(axis=1, keepdims=True)
    seconds, plain_rate = (np.array([student[i] for student in made])[:, None] for i in (2, 3))
    yield (
        Key(context, "speed_up", temperature, gamma),
        Sums(total * plain_rate, seconds, total.mean(axis=0)),
    )
