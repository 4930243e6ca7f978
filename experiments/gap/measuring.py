"""Acceptance of every variant: each student drafts for the teacher that its training left."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.gap import causes
from experiments.gap.training import VariantTrainer
from jaxdiv import schema
from jaxdiv.acceptance import RULES
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.evaluation.contexts import Context
from jaxdiv.evaluation.measurement import Group, Key, Sums
from jaxdiv.runs import progress
from jaxdiv.training import sharding, teacher
from jaxdiv.training.state import Model, TrainState

Measure = tuple[str, float]  # a measure's name in gap.csv, and its temperature
# Sums over the students of all seeds by measure, NaN for a student that diverged.
SumsByMeasure = dict[Measure, Sums]
# Measures on text that the teacher wrote, by their key there. Positions are those of rounds of
# `schema.MAX_MEASURED_GAMMA` drafts, calls those of `HEADLINE_GAMMA`.
_CALLS = Key(schema.GENERATED, schema.TAU, 1.0, schema.HEADLINE_GAMMA)
_GREEDY_CALLS = Key(schema.GENERATED_GREEDY, schema.TAU, 0.0, schema.HEADLINE_GAMMA)
_ON_TEACHER_TEXT: dict[Measure, Key] = {
    (causes.OWN_TEXT, 1.0): Key(schema.GENERATED, schema.ACCEPTANCE, 1.0),
    (causes.AT_1, 1.0): Key(schema.GENERATED, schema.ACCEPTANCE_AT, 1.0, 1),
    (causes.AT_4, 1.0): Key(schema.GENERATED, schema.ACCEPTANCE_AT, 1.0, 4),
    (schema.TAU, 1.0): _CALLS,
    (schema.TAU, 0.0): _GREEDY_CALLS,
    (causes.ACCEPTED_PER_CALL, 1.0): _CALLS,
    (causes.ACCEPTED_PER_CALL, 0.0): _GREEDY_CALLS,
}


def measure(trainer: VariantTrainer, state: TrainState) -> dict[str, SumsByMeasure]:
    """Measures all variants and the untrained students.

    Returns:
      Name of a variant, or `untrained`, to its sums. A variant whose students all diverged has no
      measures.
    """
    seeds, results = trainer.spec.seeds, {}
    trained = [
        (name, change.trains, params)
        for (name, (change, _)), params in zip(trainer.variants.items(), state.params, strict=True)
    ]
    texts = _texts(trainer, trainer.teacher)
    for trains in (causes.STUDENT, causes.HEAD):
        drafter = trainer.drafter(trains)
        groups = [
            (name, drafter.with_params(params), seeds)
            for name, part, params in trained
            if part == trains
        ]
        if trains == causes.STUDENT:
            groups.append((schema.UNTRAINED, trainer.students, seeds))
        if groups:
            _add(results, trainer, trainer.teacher, texts, groups)
    finite_students = sharding.gather(state.finite, trainer.mesh)
    for (name, trains, params), finite in zip(trained, finite_students, strict=True):
        if trains == causes.TEACHER:
            _add_with_trained_teachers(results, trainer, name, params)
        # Parameters that training left when it diverged are no one's draft.
        for sums in results[name].values():
            sums.numerator[~finite] = np.nan
        if not finite.any():
            results[name] = {}
    return results


def _texts(trainer: VariantTrainer, target: Model) -> list[Context]:
    return [
        contexts.make(name, trainer.spec.evaluation, trainer.corpus, target, trainer.mesh)
        for name in (schema.CORPUS, schema.GENERATED, schema.GENERATED_GREEDY)
    ]


def _add_with_trained_teachers(
    results: dict[str, SumsByMeasure], trainer: VariantTrainer, name: str, params: Any
) -> None:
    """Measures each student with the teacher trained beside it, which writes its own texts."""
    rows = sharding.BatchSharding(trainer.mesh, trainer.spec.teacher_stage.batch_size)
    qualities = []
    for i, seed in enumerate(trainer.spec.seeds):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], params)
        target = trainer.teacher.with_params(jax.tree.map(lambda x: x[0], one[causes.TEACHER]))
        students = trainer.students.with_params(one[causes.STUDENT])
        _add(results, trainer, target, _texts(trainer, target), [(name, students, [seed])])
        qualities.append(f"{teacher.measure_quality(trainer.corpus, target, rows):.2f}")
    progress.log(f"{name} left teachers of {', '.join(qualities)} nats a byte")


def _add(
    results: dict[str, SumsByMeasure],
    trainer: VariantTrainer,
    target: Model,
    texts: Sequence[Context],
    groups: Sequence[Group],
) -> None:
    """Adds the sums of students that draft for `target`: by every rule and temperature on the
    corpus, then by `_ON_TEACHER_TEXT`."""
    spec = trainer.spec

    def measure_on(texts, **evaluation):
        evaluation = dataclasses.replace(spec.evaluation, **evaluation)
        part = dataclasses.replace(spec, evaluation=evaluation)
        return measurement.measure_students(texts, part, target, groups, trainer.mesh)

    on_corpus = measure_on(texts[:1], rules=RULES)
    on_text = measure_on(texts[1:], rules=RULES[:1], temperatures=(1.0,))
    parts = [(name, (key.measure, key.temperature), on_corpus, key) for name, key in on_corpus.sums]
    for name, _, _ in groups:
        results.setdefault(name, {})
        parts += [(name, measure, on_text, key) for measure, key in _ON_TEACHER_TEXT.items()]
    for name, measure, measured, key in parts:
        if (name, key) not in measured.sums:
            continue
        sums = measured.sums[name, key]
        shape = (len(spec.seeds), sums.numerator.shape[1])
        whole = Sums(np.full(shape, np.nan), np.full(shape, np.nan), sums.tokens)
        whole = results[name].setdefault(measure, whole)
        rows = [spec.seeds.index(seed) for seed in measured.losses[name]]
        per_call = measure[0] == causes.ACCEPTED_PER_CALL
        whole.numerator[rows] = sums.numerator - per_call * sums.denominator
        whole.denominator[rows] = sums.denominator
