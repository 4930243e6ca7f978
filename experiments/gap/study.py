"""The study in its work folder: the variants' training as a stage of a run, then the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
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


def initialize_or_resume(workdir: Workdir, config: Mapping, causes: Sequence[Cause]) -> None:
    """Begins or resumes the study. Raises ValueError if the folder trains the students of other
    causes."""
    path, names = workdir.root / _FILE, [variant.name for variant in of_causes(causes)]
    # Checked before the folder takes a config that differs in what may change.
    if workdir.students.exists():
        stored = files.read_json(path) if path.exists() else []
        if stored != names:
            different = {name.rpartition(":")[0] for name in set(stored) ^ set(names)}
            raise ValueError(
                f"{workdir.root} trains the students of other causes, which differ in "
                f"{', '.join(sorted(different)) or 'their order'}; give it a folder of its own, "
                f"with its teacher: --workdir={workdir.root}-2 "
                f"--config.teacher.checkpoint={workdir.root}"
            )
    workdir.initialize_or_resume(config)
    if processes.is_first():
        files.write_json(path, names)


def run(
    config: Mapping,
    workdir: Workdir,
    causes: Sequence[Cause],
    *,
    corpus: TextData,
    teacher: Model,
    mesh: Mesh,
    **watching: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
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
      gap.csv and acceptance.csv.
    """
    variants = of_causes(causes)
    tokenizer = corpus.tokenizer
    untrained = students.untrained(config, tokenizer.vocab_size, mesh)
    trainer = VariantTrainer(config, teacher, untrained, padding=tokenizer.end_of_text)
    state = _train(trainer, variants, workdir, corpus, mesh, watching)
    sums = measuring.measure(trainer, variants, state, corpus, mesh)
    return ratios.table(causes, sums), ratios.acceptance_table(variants, sums)


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
