"""Each loss's learning rate for each kind of student: the same few short runs for all, read from
their curves."""

from collections.abc import Mapping
from typing import Any

from experiments.sweep import runs
from experiments.sweep.plan import Plan
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs import metrics, processes, progress
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import students

Reached = Mapping[float, Mapping[str, float]]
FILE = "reached.json"
LOST = -1.0  # less than any acceptance


def rates(plan: Plan, student: str, **watched: Any) -> dict[str, float]:
    """Loss to the rate of `config.sweep.rates` by which the student's acceptance ends highest on
    the validation batch.

    Runs that are finished are read. `watched` is what `loop.run_stage` takes of `profile` and
    `also`.
    """
    reached = {}
    for rate in plan.sweep["rates"]:
        run = plan.tuning_run(student, rate)
        with progress.event_fields(tuning=run.root.name):
            reached[rate] = _reached(plan, run, plan.tuning_config(student, rate), watched)
    made = best(reached, plan.losses)
    ends = [loss for loss, rate in made.items() if rate in (min(reached), max(reached))]
    told = ", ".join(f"{loss} {rate:g}" for loss, rate in made.items())
    progress.log(
        f"learning rates of {student}: {told}; at an end of those tried: {', '.join(ends) or 'none'}"
    )
    return made


def best(reached: Reached, losses: list[str]) -> dict[str, float]:
    """Loss to the rate at which it reached most, the smaller of equals; the smallest one where all
    students were lost.

    Args:
      reached: rate to loss to acceptance, of all losses.
      losses: those whose rates are asked for.
    """
    return {loss: max(sorted(reached), key=lambda rate: reached[rate][loss]) for loss in losses}


def _reached(plan, run: Workdir, config, watched):
    """Loss to acceptance on the validation batch at the end of a short run."""
    path = run.root / FILE
    if not processes.broadcast_from_first(path.exists()):
        config, data, guide = runs.begin(plan, run, config)
        students.train(config, run, data, guide, **watched)
        if processes.is_first():
            files.write_json(path, at_end(run, config))
        processes.barrier(f"tuned {run.root.name}")
    return read(run, plan.losses)


def read(run: Workdir, losses: list[str]) -> dict[str, float]:
    """Loss to what `at_end` found of a finished run, of `LOST` if its student was lost.

    Raises ValueError if the run had no such loss.
    """
    found = files.read_json(run.root / FILE)
    tuned = [loss.text for loss in run_config.losses(run.config())]
    if absent := [loss for loss in losses if loss not in tuned]:
        raise ValueError(
            f"{run.root} was tuned without {', '.join(absent)}; delete it to have it tuned again"
        )
    return {loss: found.get(loss, LOST) for loss in losses}


def at_end(run: Workdir, config: Mapping) -> dict[str, float]:
    """Loss to what its curve says of acceptance after the last step; without a loss whose student
    is lost."""
    curves = metrics.read_curves(run.curves, "student", students.seeds(config))
    last = curves[curves["metric"].eq("acceptance") & curves["step"].eq(config["student"]["steps"])]
    return {loss: float(value) for loss, value in last.groupby("loss")["value"].mean().items()}
