"""How every run of a sweep begins, or goes on: a teacher's, a tuning run, a cell."""

from collections.abc import Mapping
from typing import Any

from experiments.sweep.plan import Plan
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.training import run_data, teacher
from jaxdiv.training.run_data import TextData
from jaxdiv.training.state import Model

_SHARED = (DATA_READY, run_data.TOKENIZER)  # facts


def begin(
    plan: Plan, run: Workdir, config: Mapping, **watched: Any
) -> tuple[dict[str, Any], TextData, Model]:
    """The run's config as it will have it, its data, and its teacher, which is trained or taken
    over here.

    `watched` is what `loop.run_stage` takes of `profile` and `also`.

    Raises:
      ValueError: the run has other data, or other tokens of it, than the teacher of the base.
    """
    config = teacher.resolve(config, run, typed={})
    run.initialize_or_resume(config)
    data = run_data.prepare(config, run)
    _refuse_other_data(run, plan.teacher_run(plan.cells[0].teacher))
    return config, data, teacher.prepare(config, run, data, **watched)


def _refuse_other_data(run, first):
    """Files may have changed since the sweep began, and a teacher that is taken over brings its
    tokenizer."""
    here, there = run.facts(), first.facts()
    for fact in _SHARED:
        if here[fact] != there[fact]:
            raise ValueError(
                f"{run.root}: the {fact} is {here[fact]}, but {there[fact]} in {first.root}; all of a sweep have one "
                f"corpus and one tokenizer: put that right and delete the former, or begin another sweep"
            )
