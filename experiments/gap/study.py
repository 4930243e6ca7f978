"""The study in its work folder: the variants' training as a stage of a run, then the tables."""

import dataclasses
from collections.abc import Mapping, Sequence

import pandas as pd
from jax.sharding import Mesh

from experiments.gap import measuring, ratios
from experiments.gap.causes import Cause
from experiments.gap.variants import VariantTrainer, for_causes
from jaxdiv import files
from jaxdiv.runs import processes
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import loop, sharding, students
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model

_FILE = "arms.json"  # the names of the folder's variants


def initialize_or_resume(workdir: Workdir, config: Mapping, causes: Sequence[Cause]) -> None:
    """Begins or resumes the study. Raises ValueError if the folder trains the students of other
    causes."""
    path, names = workdir.root / _FILE, [variant.name for variant in for_causes(causes)]
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
    spec: RunSpec,
    workdir: Workdir,
    causes: Sequence[Cause],
    *,
    corpus: TextData,
    teacher: Model,
    mesh: Mesh,
    monitoring: loop.Monitoring,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trains all variants, or resumes, and measures them.

    Args:
      spec: the run.
      workdir: its folder.
      causes: of the study.
      corpus: the run's data.
      teacher: of all students.
      mesh: that training and measuring are spread over.
      monitoring: of the training.

    Returns:
      gap.csv and acceptance.csv.
    """
    variants, tokenizer = for_causes(causes), corpus.tokenizer
    untrained = students.untrained(spec, tokenizer.vocab_size, mesh)
    trainer = VariantTrainer(spec, variants, teacher, untrained, padding=tokenizer.end_of_text)
    stage = dataclasses.replace(
        spec.student_stage,
        members=tuple(variant.name for variant in variants),
        optimizers=tuple(trainer.optimizer_spec(variant) for variant in variants),
    )
    training = loop.Training(
        spec=stage,
        folder=workdir.students,
        initial_state=lambda: trainer.initial_state(mesh),
        step=trainer.step(mesh),
        teacher=teacher.params,
        batches=corpus.batches(stage, sharding.BatchSharding(mesh, stage.batch_size).local_rows),
        measure=lambda _: {},
        report_diverged=lambda number, finite, _: students.report_diverged(stage, number, finite),
    )
    state = loop.run_stage(training, workdir, mesh, monitoring)
    sums = measuring.measure(trainer, state, corpus, mesh)
    return ratios.table(causes, sums), ratios.acceptance_table(variants, sums)
