"""Acceptance of every variant: each student drafts for the teacher that its training left."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.gap import causes
from experiments.gap.variants import VariantTrainer
from jaxdiv.acceptance import RULES
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.evaluation.contexts import Context
from jaxdiv.evaluation.measurement import Key, Sums
from jaxdiv.runs import progress
from jaxdiv.runs.specs import RunSpec
from jaxdiv.schema import CORPUS, GENERATED, GENERATED_GREEDY, HEADLINE_GAMMA, UNTRAINED
from jaxdiv.training import sharding, teacher
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model, TrainState

Measure = tuple[str, float]  # a measure's name in gap.csv, and its temperature
SumsByMeasure = dict[Measure, Sums]
_ACCEPTED_PER_CALL = "accepted_a_call"  # tokens a call without the one that the target adds
# Measures on text that the teacher wrote, by their key there. Positions are those of rounds of
# `schema.MAX_MEASURED_GAMMA` drafts, calls those of `HEADLINE_GAMMA`.
_ON_TEACHER_TEXT: dict[Measure, Key] = {
    ("acceptance_own_text", 1.0): Key(GENERATED, "acceptance", 1.0),
    ("acceptance_at_1", 1.0): Key(GENERATED, "acceptance_at", 1.0, 1),
    ("acceptance_at_4", 1.0): Key(GENERATED, "acceptance_at", 1.0, 4),
    ("tau", 1.0): Key(GENERATED, "tau", 1.0, HEADLINE_GAMMA),
    ("tau", 0.0): Key(GENERATED_GREEDY, "tau", 0.0, HEADLINE_GAMMA),
    (_ACCEPTED_PER_CALL, 1.0): Key(GENERATED, "tau", 1.0, HEADLINE_GAMMA),
    (_ACCEPTED_PER_CALL, 0.0): Key(GENERATED_GREEDY, "tau", 0.0, HEADLINE_GAMMA),
}


def measure(
    trainer: VariantTrainer, state: TrainState, corpus: TextData, mesh: Mesh
) -> dict[str, SumsByMeasure]:
    """Measures all variants and the untrained students.

    Returns:
      Name of a variant, or `untrained`, to measure to sums over the students of all seeds, NaN for
      a student that diverged. A variant whose students all diverged has no measures.
    """
    spec, seeds = trainer.spec, trainer.spec.seeds
    variants = trainer.variants
    params = dict(zip((variant.name for variant in variants), state.params, strict=True))
    texts, results = _texts(spec, corpus, trainer.teacher, mesh), {}
    for trains in (causes.STUDENT, causes.HEAD):
        drafter = trainer.drafter(trains)
        population = [
            (variant.name, drafter.with_params(params[variant.name]), seeds)
            for variant in variants
            if variant.change.trains == trains
        ]
        if trains == causes.STUDENT:
            population.append((UNTRAINED, trainer.students, seeds))
        if population:
            results |= _measure_population(spec, trainer.teacher, population, texts, mesh)
    for variant, finite in zip(variants, sharding.gather(state.finite, mesh), strict=True):
        name = variant.name
        if variant.change.trains == causes.TEACHER:
            results[name] = _measure_with_trained_teachers(
                trainer, name, params[name], corpus, mesh
            )
        # Parameters that training left when it diverged are no one's draft.
        results[name] = {
            key: dataclasses.replace(
                sums, numerator=np.where(finite[:, None], sums.numerator, np.nan)
            )
            for key, sums in results[name].items()
            if finite.any()
        }
    return results


def _texts(spec: RunSpec, corpus: TextData, teacher_model: Model, mesh: Mesh) -> list[Context]:
    return [
        contexts.make(name, spec.evaluation, corpus, teacher_model, mesh)
        for name in (CORPUS, GENERATED, GENERATED_GREEDY)
    ]


def _measure_population(
    spec: RunSpec,
    teacher_model: Model,
    population: Sequence[tuple[str, Any, Sequence[int]]],
    texts: Sequence[Context],
    mesh: Mesh,
) -> dict[str, SumsByMeasure]:
    """Measures by every rule and temperature on the corpus, then by `_ON_TEACHER_TEXT`."""

    def measure_on(part, **evaluation):
        evaluation = dataclasses.replace(spec.evaluation, **evaluation)
        part_spec = dataclasses.replace(spec, evaluation=evaluation)
        return measurement.measure_students(part, part_spec, teacher_model, population, mesh)

    on_corpus = measure_on(texts[:1], rules=RULES)
    on_text = measure_on(texts[1:], rules=RULES[:1], temperatures=(1.0,))
    results = {}
    for name, _, seeds in population:
        parts = [
            ((key.measure, key.temperature), on_corpus, key)
            for student, key in on_corpus.sums
            if student == name
        ]
        parts += [
            (measure, on_text, key)
            for measure, key in _ON_TEACHER_TEXT.items()
            if (name, key) in on_text.sums
        ]
        results[name] = {}
        for measure, measured, key in parts:
            # Students that diverged are absent there; here every seed has a row.
            finite = np.array([seed in measured.losses[name] for seed in seeds])
            sums = measured.sums[name, key]
            numerator, denominator = np.full((2, len(seeds), sums.numerator.shape[1]), np.nan)
            numerator[finite], denominator[finite] = sums.numerator, sums.denominator
            if measure[0] == _ACCEPTED_PER_CALL:
                numerator -= denominator
            results[name][measure] = Sums(numerator, denominator, sums.tokens)
    return results


def _measure_with_trained_teachers(
    trainer: VariantTrainer, name: str, params: Any, corpus: TextData, mesh: Mesh
) -> SumsByMeasure:
    """Measures each student with the teacher trained beside it, which writes its own texts."""
    spec, parts, qualities = trainer.spec, [], []
    rows = sharding.BatchSharding(mesh, spec.teacher_stage.batch_size)
    for i, seed in enumerate(spec.seeds):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], params)
        trained = trainer.teacher.with_params(jax.tree.map(lambda x: x[0], one[causes.TEACHER]))
        population = [(name, trainer.students.with_params(one["student"]), [seed])]
        texts = _texts(spec, corpus, trained, mesh)
        parts.append(_measure_population(spec, trained, population, texts, mesh)[name])
        nats = teacher.measure_quality(corpus, trained, rows)
        qualities.append(f"{nats:.2f}")
    progress.log(f"{name} left teachers of {', '.join(qualities)} nats a byte")
    joined = {}
    for key, like in next((part for part in parts if part), {}).items():
        diverged = dataclasses.replace(like, numerator=np.full_like(like.numerator, np.nan))
        sums = [part.get(key, diverged) for part in parts]
        joined[key] = Sums(
            np.concatenate([part.numerator for part in sums]),
            np.concatenate([part.denominator for part in sums]),
            like.tokens,
        )
    return joined
