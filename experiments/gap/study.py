"""The study in its work folder: the arms' training as a stage of a run, then the table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from experiments.gap import arms, measuring, ratios
from experiments.gap.causes import Cause
from experiments.gap.lessons import Lessons
from jaxdiv import files
from jaxdiv.runs import processes, progress
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, students
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model, TrainState

_ARMS = "arms.json"


def check(workdir: Workdir, causes: Sequence[Cause]) -> None:
    """Raises ValueError if the folder trains the students of other causes."""
    path, wanted = workdir.root / _ARMS, _names(causes)
    known = wanted
    if workdir.students.exists():
        known = files.read_json(path) if path.exists() else []
    if known != wanted:
        apart = sorted({text.rpartition(":")[0] for text in set(known) ^ set(wanted)}) or [
            "their order"
        ]
        raise ValueError(
            f"{workdir.root} trains the students of other causes, which differ in {', '.join(apart)}; give it a folder "
            f"of its own, with its teacher: --workdir={workdir.root}-2 --config.teacher.checkpoint={workdir.root}"
        )


def initialize_or_resume(workdir: Workdir, causes: Sequence[Cause]) -> None:
    """Keeps which students the folder trains, for `check`."""
    if processes.is_first():
        files.write_json(workdir.root / _ARMS, _names(causes))


def _names(causes):
    return [arm.text for arm in arms.of(causes)]


def run(
    config: Mapping,
    workdir: Workdir,
    causes: Sequence[Cause],
    *,
    corpus: TextData,
    teacher: Model,
    mesh: Mesh,
    **watched: Any,
) -> tuple[list[dict], list[dict]]:
    """Trains all arms, or goes on with them, and measures them: the rows of gap.csv and of
    acceptance.csv.

    `watched` is what `loop.run_stage` takes of `profile` and `also`.
    """
    every = arms.of(causes)
    pupils = students.untrained(config, corpus.tokenizer.vocab_size, mesh)
    trainer = arms.Trainer(Lessons(config, teacher, padding=corpus.tokenizer.end_of_text), pupils)
    state = _train(trainer, every, workdir, corpus, mesh, watched)
    found = measuring.measure(trainer, every, state, corpus, mesh)
    return ratios.rows(causes, found), ratios.acceptance(every, found)


def _train(trainer, every, workdir, corpus, mesh, watched) -> TrainState:
    config, seeds = trainer.config, students.seeds(trainer.config)

    def report_diverged(number, alive, _):
        dead = [
            f"{every[i].text} (seed {seeds[j]})" for i, j in zip(*np.nonzero(~alive), strict=True)
        ]
        progress.log(
            f"not finite by step {number}, frozen and left out: {', '.join(dead)}", style="red"
        )

    return loop.run_stage(
        config,
        workdir,
        stage="student",
        folder=workdir.students,
        names=[arm.text for arm in every],
        seeds=seeds,
        optimizers=[trainer.settings(arm) for arm in every],
        mesh=mesh,
        begin=lambda: trainer.beginning(every, mesh),
        step=trainer.step(every, mesh),
        teacher=trainer.teacher.params,
        batches=run_data.batches(config, "student", corpus, mesh),
        measure=lambda _: {},
        report_diverged=report_diverged,
        **watched,
    )
