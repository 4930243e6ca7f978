"""Each loss's learning rate for each kind of student: the same few short runs for all, read from their curves."""

from collections.abc import Mapping
from typing import Any

from experiments.sweep.plan import Plan
from jaxdiv import files
from jaxdiv.training import corpus, metrics, processes, progress, students, teacher
from jaxdiv.training.workdir import Workdir

Reached = Mapping[float, Mapping[str, float]]


def rates(plan: Plan, student: str, **watched: Any) -> dict[str, float]:
    """Loss to the rate of `config.sweep.rates` by which the student's acceptance ends highest on the validation batch.

    Runs that are finished are read. `watched` is what `loop.run_stage` takes of `profile` and `also`.
    """
    reached = {}
    for rate in plan.sweep["rates"]:
        run = plan.tuning_run(student, rate)
        with progress.place(tuning=run.root.name):
            reached[rate] = _reached(plan, run, plan.tuning_config(student, rate), watched)
    made = best(reached, plan.losses)
    ends = [loss for loss, rate in made.items() if rate in (min(reached), max(reached))]
    told = ", ".join(f"{loss} {rate:g}" for loss, rate in made.items())
    progress.say(f"learning rates of {student}: {told}; at an end of those tried: {', '.join(ends) or 'none'}")
    return made


def best(reached: Reached, losses: list[str]) -> dict[str, float]:
    """Loss to the rate at which it reached most, the smaller of equals; the smallest one where it reached nothing.

    Args:
      reached: rate to loss to acceptance, without those that ended in numbers that aren't finite.
      losses: all of them.
    """
    return {loss: max(sorted(reached), key=lambda rate: reached[rate].get(loss, -1.0)) for loss in losses}


def _reached(plan, run: Workdir, config, watched):
    """Loss to acceptance on the validation batch at the end of a short run."""
    path = run.root / "reached.json"
    if not path.exists():
        config = teacher.settle(config, run, typed={})
        run.claim(config)
        data = corpus.prepare(config, run)
        students.train(config, run, data, teacher.prepare(config, run, data), **watched)
        if processes.is_first():
            files.write_json(path, at_end(run, config))
        processes.meet(f"tuned {run.root.name}")
    return files.read_json(path)


def at_end(run: Workdir, config: Mapping) -> dict[str, float]:
    """Loss to what its curve says of acceptance after the last step; without a loss whose student is lost."""
    curves = metrics.read_curves(run.curves, "student", students.seeds(config))
    last = curves[curves["metric"].eq("acceptance") & curves["step"].eq(config["student"]["steps"])]
    return {loss: float(value) for loss, value in last.groupby("loss")["value"].mean().items()}
