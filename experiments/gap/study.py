"""The study in its work folder: the variants' training as a stage of a run, then the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from experiments.gap import measuring, ratios
from experiments.gap.causes import Cause
from experiments.gap.variants import Variant, VariantTrainer, of_causes
from jaxdiv import files
from jaxdiv.runs import processes, progress
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, run_data, students
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model, TrainState

_FILE = "arms.json"  # the names of the folder's variants


def check(workdir: Workdir, causes: Sequence[Cause]) -> None:
    """Raises ValueError if the folder trains the students of other causes."""
    path, names = workdir.root / _FILE, [variant.name for variant in of_causes(causes)]
    if not workdir.students.exists():
        return
    stored = files.read_json(path) if path.exists() else []
    if stored != names:
        different = {name.rpartition(":")[0] for name in set(stored) ^ set(names)}
        raise ValueError(
            f"{workdir.root} trains the students of other causes, which differ in "
            f"{', '.join(sorted(different)) or 'their order'}; give it a folder of its own, with "
            f"its teacher: --workdir={workdir.root}-2 --config.teacher.checkpoint={workdir.root}"
        )


def initialize_or_resume(workdir: Workdir, causes: Sequence[Cause]) -> None:
    """Stores which students the folder trains, for `check`."""
    if processes.is_first():
        names = [variant.name for variant in of_causes(causes)]
        files.write_json(workdir.root / _FILE, names)


def run(
    config: Mapping,
    workdir: Workdir,
    causes: Sequence[Cause],
    *,
    corpus: TextData,
    teacher: Model,
    mesh: Mesh,
    **watching: Any,
) -> tuple[list[dict], list[dict]]:
    """Trains all variants, or resumes, and measures them.

    Args:
      config: the run's.
      workdir: its folder.
      causes: of the study.
      corpus: the run's data.
      teacher: of all students.
      mesh: that training and measuring are spread over.
      **watching: `profile` and `also` of `loop.run_stage`.

    Returns:
      The rows of gap.csv and of acceptance.csv.
    """
    variants = of_causes(causes)
    tokenizer = corpus.tokenizer
    untrained = students.untrained(config, tokenizer.vocab_size, mesh)
    trainer = VariantTrainer(config, teacher, untrained, padding=tokenizer.end_of_text)
    state = _train(trainer, variants, workdir, corpus, mesh, watching)
    sums = measuring.measure(trainer, variants, state, corpus, mesh)
    return ratios.rows(causes, sums), ratios.acceptance(variants, sums)


def _train(
    trainer: VariantTrainer,
    variants: Sequence[Variant],
    workdir: Workdir,
    corpus: TextData,
    mesh: Mesh,
    watching: Mapping[str, Any],
) -> TrainState:
    config, names = trainer.config, [variant.name for variant in variants]
    seeds = students.seeds(config)

    def report_diverged(number, finite, _):
        diverged = [f"{names[i]} (seed {seeds[j]})" for i, j in np.argwhere(~finite)]
        progress.log(
            f"not finite by step {number}, frozen and left out: {', '.join(diverged)}", style="red"
        )

    return loop.run_stage(
        config,
        workdir,
        stage="student",
        folder=workdir.students,
        names=names,
        seeds=seeds,
        optimizers=[trainer.optimizer_settings(variant) for variant in variants],
        mesh=mesh,
        begin=lambda: trainer.initial_state(variants, mesh),
        step=trainer.step(variants, mesh),
        teacher=trainer.teacher.params,
        batches=run_data.batches(config, "student", corpus, mesh),
        measure=lambda _: {},
        report_diverged=report_diverged,
        **watching,
    )
