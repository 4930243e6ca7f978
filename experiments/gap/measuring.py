"""Every arm's acceptance: each of the run's students drafts for the teacher that its training left
behind."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.gap import arms, causes
from jaxdiv import schema
from jaxdiv.acceptance import RULES
from jaxdiv.evaluation import contexts, measurement
from jaxdiv.evaluation.contexts import Context
from jaxdiv.evaluation.measurement import Key, Measurement, Sums
from jaxdiv.runs import progress, sharding
from jaxdiv.training import students, teacher
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import TrainState

GAMMA = 4  # drafts a round where accepted ones are counted by target call
CORPUS, OWN_TEXT, OWN_TEXT_GREEDY = "corpus", *schema.GENERATED_TEMPERATURES
_LESS_THE_TARGETS_OWN = "accepted_a_call"
Cell = tuple[str, float]  # a measure and its temperature
# A cell to where it is measured, on text that the teacher wrote, and what it is called there.
# Positions are those of rounds of `evaluation.MAX_GAMMA` drafts, calls those of `GAMMA`.
_ON_OWN_TEXT: dict[Cell, Key] = {
    ("acceptance_own_text", 1.0): Key(OWN_TEXT, "acceptance", 1.0),
    ("acceptance_at_1", 1.0): Key(OWN_TEXT, "acceptance_at", 1.0, 1),
    ("acceptance_at_4", 1.0): Key(OWN_TEXT, "acceptance_at", 1.0, 4),
    ("tau", 1.0): Key(OWN_TEXT, "tau", 1.0, GAMMA),
    ("tau", 0.0): Key(OWN_TEXT_GREEDY, "tau", 0.0, GAMMA),
    (_LESS_THE_TARGETS_OWN, 1.0): Key(OWN_TEXT, "tau", 1.0, GAMMA),
    (_LESS_THE_TARGETS_OWN, 0.0): Key(OWN_TEXT_GREEDY, "tau", 0.0, GAMMA),
}


def measure(
    trainer: arms.Trainer,
    trained: Sequence[arms.Arm],
    state: TrainState,
    corpus: TextData,
    mesh: Mesh,
) -> dict[str, dict[Cell, Sums]]:
    """Arm, and `untrained`, to measure and temperature to sums over the students of all seeds, NaN
    of one that is lost.

    An arm that lost all of them has no cells.
    """
    config, seeds = trainer.config, students.seeds(trainer.config)
    lots = list(zip(trained, state.params, sharding.whole(state.alive, mesh), strict=True))
    on, found = _contexts(config, corpus, trainer.teacher, mesh), {}
    for learns in (causes.STUDENT, causes.HEAD):
        drafter = trainer.drafter(learns)
        group = [
            (arm.text, drafter.with_params(own), seeds)
            for arm, own, _ in lots
            if arm.change.learns == learns
        ]
        if learns == causes.STUDENT:
            group.append((schema.UNTRAINED, trainer.pupils, seeds))
        if group:
            found |= _measured(config, trainer.teacher, group, on, mesh)
    for arm, own, _ in lots:
        if arm.change.learns == causes.TEACHER:
            found |= _with_own_teachers(trainer, arm.text, own, corpus, mesh)
    for arm, _, alive in lots:
        found[arm.text] = (
            {cell: _only(sums, alive) for cell, sums in found[arm.text].items()}
            if alive.any()
            else {}
        )
    return found


def _contexts(config, corpus, guide, mesh):
    return [
        contexts.make(name, config, corpus, guide, mesh)
        for name in (CORPUS, OWN_TEXT, OWN_TEXT_GREEDY)
    ]


def _with_own_teachers(trainer, text, own, corpus, mesh):
    """Each student with its own teacher, which writes its own text."""
    config, parts, quality = trainer.config, [], []
    for i, seed in enumerate(students.seeds(config)):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], own)
        guide = trainer.teacher.with_params(jax.tree.map(lambda x: x[0], one[causes.TEACHER]))
        group = [(text, trainer.pupils.with_params(one["student"]), [seed])]
        parts.append(
            _measured(config, guide, group, _contexts(config, corpus, guide, mesh), mesh)[text]
        )
        quality.append(f"{teacher.nats_a_byte(config, corpus, guide, mesh):.2f}")
    progress.log(f"{text} left teachers of {', '.join(quality)} nats a byte")
    known = next((part for part in parts if part), {})
    return {
        text: {
            cell: _joined([part.get(cell) for part in parts], like) for cell, like in known.items()
        }
    }


def _joined(parts, like):
    lost = Sums(np.full_like(like.numerator, np.nan), like.denominator, like.tokens)
    sides = [
        [getattr(part or lost, side) for part in parts] for side in ("numerator", "denominator")
    ]
    return Sums(*map(np.concatenate, sides), like.tokens)


def _measured(config, guide, group, on: Sequence[Context], mesh) -> dict[str, dict[Cell, Sums]]:
    """On the corpus by every rule and temperature, on the teacher's own text what `_ON_OWN_TEXT`
    has."""
    where = {"config": config, "guide": guide, "population": group, "mesh": mesh}
    whole = {"rules": RULES, "temperatures": config["evaluation"]["temperatures"]}
    parts = [
        measurement.measure_students(on[:1], **where, **whole),
        measurement.measure_students(on[1:], **where, rules=RULES[:1], temperatures=(1.0,)),
    ]
    return {
        text: {cell: sums for part in parts for cell, sums in _cells(part, text, seeds)}
        for text, _, seeds in group
    }


def _cells(measured: Measurement, text, seeds):
    kept = [seed in measured.losses.get(text, ()) for seed in seeds]
    for (name, key), sums in measured.sums.items():
        if name == text and key.context == CORPUS:
            yield (key.measure, key.temperature), _spread(sums, kept)
    for cell, key in _ON_OWN_TEXT.items():
        if (text, key) in measured.sums:
            sums = _spread(measured.sums[text, key], kept)
            yield cell, _less_own(sums) if cell[0] == _LESS_THE_TARGETS_OWN else sums


def _spread(sums, kept):
    """With a row for every seed."""
    kept = np.array(kept)
    numerator, denominator = np.full((2, kept.size, sums.numerator.shape[1]), np.nan)
    numerator[kept], denominator[kept] = sums.numerator, sums.denominator
    return Sums(numerator, denominator, sums.tokens)


def _only(sums, alive):
    """What training left of a student that turned non-finite is no one's draft."""
    return dataclasses.replace(sums, numerator=np.where(alive[:, None], sums.numerator, np.nan))


def _less_own(sums):
    """Of tokens a call, all but the target's own."""
    return dataclasses.replace(sums, numerator=sums.numerator - sums.denominator)
