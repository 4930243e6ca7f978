"""The runs of a sweep: the config and the folder of each."""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jaxdiv
from experiments.sweep import cells
from experiments.sweep.cells import Cell
from jaxdiv import files, schema
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys
from jaxdiv.runs.specs import RunSpec, parse_losses
from jaxdiv.runs.workdir import DATA_READY, Workdir

REFERENCE = "kl"  # the loss that the others are compared with
# Keys of a run that differ between cells, and the sweep's key that says how.
_SET_BY_SWEEP = {
    "temperature": "temperatures",
    "data.context": "contexts",
    "teacher.checkpoint": "teachers",
    "student.learning_rates": "rates",
    "student.optimizer.learning_rate": "rates",
}


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its folder, the config that it begins with, and the folder of the base's
    teacher, whose texts and tokenizer all runs share."""

    workdir: Workdir
    config: dict[str, Any]
    first: Workdir

    def spec(self) -> RunSpec:
        return RunSpec.from_config(self.config)


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep, all in one folder.

    Attributes:
      root: the folder.
      config: a run's, from which those of the sweep's runs differ.
      sweep: `config.sweep`.
      cells: all cells, the base first.
      decoded: those that are also decoded.
      offered: how many losses the user's config has, of which `config` may have some.
    """

    root: pathlib.PurePath
    config: Mapping
    sweep: Mapping
    cells: tuple[Cell, ...]
    decoded: tuple[Cell, ...]
    offered: int

    @property
    def losses(self) -> list[str]:
        return [loss.text for loss in parse_losses(self.config["losses"])]

    def workdir(self, kind: str, name: str) -> Workdir:
        """Returns a run's folder; `kind` is `teachers`, `tuning` or `cells`."""
        return Workdir(self.root / kind / name)

    def teacher_run(self, name: str) -> PlannedRun:
        """Plans the run that trains a teacher."""
        config = copy.deepcopy(dict(self.config))
        config["teacher"] |= self.sweep["teachers"][name]
        return self._in_folder(config, self.workdir("teachers", name))

    def tuning_runs(self, student: str) -> dict[float, PlannedRun]:
        """Plans a run for each learning rate: few steps and one seed of the base's cell, with
        another student."""
        base, runs = dataclasses.replace(self.cells[0], student=student), {}
        for rate in self.sweep["rates"]:
            config = self._cell_config(base)
            config["seeds"] = 1
            config["student"]["steps"] = self.sweep["tuning_steps"]
            config["student"]["optimizer"]["learning_rate"] = rate
            runs[rate] = self._in_folder(config, self.workdir("tuning", f"{student}-{rate:g}"))
        return runs

    def cell_run(self, cell: Cell, rates: Mapping[str, float] | None = None) -> PlannedRun:
        """Plans a cell's run, whose losses have the learning rates `rates`, or 1 for an
        estimate."""
        config = self._cell_config(cell)
        config["student"]["learning_rates"] = "; ".join(
            f"{loss}: {rates[loss] if rates else 1:g}" for loss in self.losses
        )
        return self._in_folder(config, self.workdir("cells", cell.name))

    def tuned_student(self, cell: Cell) -> str:
        """Returns the student whose learning rates a cell has: the first of its kind by name."""
        students = self.sweep["students"]
        kinds = {name: {**self.config["student"], **students[name]}["kind"] for name in students}
        return next(name for name in students if kinds[name] == kinds[cell.student])

    def _cell_config(self, cell: Cell) -> dict[str, Any]:
        config = copy.deepcopy(dict(self.config))
        config["student"] |= self.sweep["students"][cell.student]
        config["teacher"] |= self.sweep["teachers"][cell.teacher]
        config["teacher"]["checkpoint"] = str(self.workdir("teachers", cell.teacher).root)
        config["data"]["context"], config["temperature"] = cell.context, cell.temperature
        return config

    def _in_folder(self, config: dict[str, Any], workdir: Workdir) -> PlannedRun:
        data = config["data"]
        if data["source"] == "python_stdlib" and not (
            data["directory"] or data["files"] or files.in_bucket(self.root)
        ):
            data["directory"] = str(self.root / "data")  # all runs read the library once
        if DATA_READY in workdir.facts():
            # The sweep may have been moved since the run began, whose paths stay.
            stored = workdir.config()
            config["teacher"]["checkpoint"] = stored["teacher"]["checkpoint"]
            data["directory"] = stored["data"]["directory"]
        return PlannedRun(workdir, config, self.workdir("teachers", self.cells[0].teacher))


def read(
    config: Mapping,
    root: pathlib.PurePath,
    *,
    typed: Mapping[str, Any] = (),
    losses: str | None = None,
) -> SweepPlan:
    """Returns the plan of a config with `sweep`, checked before anything is trained.

    Args:
      config: the user's.
      root: the sweep's folder.
      typed: dotted key below `config` to value, of what the command line overrides.
      losses: those of the config's that are trained, separated by commas; all of them if None.

    Raises:
      ValueError: the config is not a sweep's, or lacks some of `losses`.
    """
    config = copy.deepcopy(dict(config))
    if "sweep" not in config:
        raise ValueError("the config has no `sweep`; give one such as --config=configs/choose.py")
    for key, sweep_key in _SET_BY_SWEEP.items():
        if key in typed:
            raise ValueError(
                f"--config.{key}: each cell has its own; give config.sweep.{sweep_key}"
            )
    sweep = config.pop("sweep")
    run_config.check_each(config)
    sweep_cells = cells.read(sweep)
    globs = cells.names(sweep["decoded"])
    decoded = cells.select(sweep_cells, globs, "`config.sweep.decoded`")
    for key in typed:
        # An override would not reach students or teachers that set the key themselves.
        section, _, name = key.partition(".")
        group = f"{section}s"
        levels = sweep[group] if group in ("students", "teachers") else {}
        keys = [f"config.sweep.{group}.{level}.{name}" for level in levels if name in levels[level]]
        if keys:
            raise ValueError(f"--config.{key}: some {group} have their own; give {', '.join(keys)}")
    offered = [loss.text for loss in parse_losses(config["losses"])]
    if losses is not None:
        try:
            names = jaxdiv.split(losses)
        except ValueError as error:
            raise ValueError(f"--losses: {error}") from None
        wrong = [name for name in names if name not in offered]
        if wrong or not names:
            raise ValueError(
                f"--losses: {', '.join(wrong) or 'nothing'} is none of the config's, "
                f"{', '.join(offered)}"
            )
        config["losses"] = ",".join(name for name in offered if name in names)
    plan = SweepPlan(root, config, sweep, sweep_cells, decoded, len(offered))
    _check(plan)
    return plan


def _check(plan: SweepPlan) -> None:
    losses, evaluation = plan.losses, plan.config["evaluation"]
    if cache := plan.config["teacher"]["cache"]:
        raise ValueError(
            "`config.teacher.cache` must be empty in a sweep, whose cells have other teachers and "
            f"texts, got {cache!r}"
        )
    if losses[0] != REFERENCE or "ce" in losses or len(losses) < 2:
        raise ValueError(
            f"`config.losses` must begin with {REFERENCE}, which the others are compared with, and "
            f"lack ce, which has its gradient; got {', '.join(losses)}"
        )
    temperature = schema.HEADLINE_TEMPERATURE
    contexts = config_keys.names_in(evaluation["contexts"])
    if temperature not in evaluation["temperatures"] or schema.CORPUS not in contexts:
        raise ValueError(
            "losses are ranked by acceptance on held-out documents at temperature "
            f"{temperature:g}: `config.evaluation.temperatures` must have {temperature:g} and "
            "`config.evaluation.contexts` corpus"
        )
    tuning_steps = plan.sweep["tuning_steps"]
    if tuning_steps <= (warmup := plan.config["student"]["optimizer"]["warmup_steps"]):
        raise ValueError(
            "`config.sweep.tuning_steps` must be above `config.student.optimizer.warmup_steps` = "
            f"{warmup}, got {tuning_steps}"
        )
    for cell in plan.cells:
        tuning = plan.tuning_runs(plan.tuned_student(cell)).values()
        try:
            for run in (plan.cell_run(cell), *tuning):
                run_config.check(run.config)
        except ValueError as error:
            raise ValueError(f"cell {cell.name}: {error}") from None
