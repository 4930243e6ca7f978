"""The runs of a sweep: which config each has, and where it lies."""

import copy
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jaxdiv
from experiments.sweep import grid
from experiments.sweep.grid import Cell
from jaxdiv import files, schema
from jaxdiv.runs import config as run_config
from jaxdiv.runs import config_keys
from jaxdiv.runs.workdir import DATA_READY, Workdir

REFERENCE = "kl"
TEMPERATURE = schema.HEADLINE_TEMPERATURE
_EACH_CELLS_OWN = {
    "temperature": "temperatures",
    "data.context": "contexts",
    "teacher.checkpoint": "teachers",
    "student.learning_rates": "rates",
    "student.optimizer.learning_rate": "rates",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep's folder holds.

    Attributes:
      root: the folder.
      config: a run's, from which those of the sweep's runs depart.
      sweep: `config.sweep`.
      cells: all of the grid, the base first.
      offered: how many losses the user's config has, of which `config` may have some.
    """

    root: pathlib.PurePath
    config: Mapping
    sweep: Mapping
    cells: tuple[Cell, ...]
    offered: int

    @property
    def losses(self) -> list[str]:
        return [loss.text for loss in run_config.losses(self.config)]

    def whole(self) -> dict[str, Any]:
        """The config with what is the sweep's."""
        return {**self.config, "sweep": self.sweep}

    def teacher_run(self, name: str) -> Workdir:
        return Workdir(self.root / "teachers" / name)

    def tuning_run(self, student: str, rate: float) -> Workdir:
        return Workdir(self.root / "tuning" / f"{student}-{rate:g}")

    def cell_run(self, cell: Cell) -> Workdir:
        return Workdir(self.root / "cells" / cell.name)

    def teacher_config(self, name: str) -> dict[str, Any]:
        """Of the run that trains a teacher."""
        config = copy.deepcopy(dict(self.config))
        config["teacher"] |= self.sweep["teachers"][name]
        return self._at_home(config, self.teacher_run(name))

    def tuning_config(self, student: str, rate: float) -> dict[str, Any]:
        """Of a run of few steps and one seed, otherwise the base's but for the student."""
        base = dataclasses.replace(self.cells[0], student=student)
        config = self._departed(base)
        config["seeds"] = 1
        config["student"]["steps"] = self.sweep["tuning_steps"]
        config["student"]["optimizer"]["learning_rate"] = rate
        return self._taught(config, self.tuning_run(student, rate), base.teacher)

    def cell_config(self, cell: Cell, rates: Mapping[str, float]) -> dict[str, Any]:
        """Of a cell's run, whose losses have these learning rates."""
        config = self._departed(cell)
        config["student"]["learning_rates"] = "; ".join(
            f"{loss}: {rates[loss]:g}" for loss in self.losses
        )
        return self._taught(config, self.cell_run(cell), cell.teacher)

    def teachers(self, cells: Iterable[Cell]) -> list[str]:
        """The names of those that `cells` need, and the base's first, with which learning rates are
        tuned."""
        return list(dict.fromkeys(cell.teacher for cell in (self.cells[0], *cells)))

    def tuned_as(self, cell: Cell) -> str:
        """The student whose learning rates a cell has: the first of its kind by name."""
        return next(
            name for name in self.sweep["students"] if self._kind(name) == self._kind(cell.student)
        )

    def _kind(self, student):
        return {**self.config["student"], **self.sweep["students"][student]}["kind"]

    def _departed(self, cell):
        config = copy.deepcopy(dict(self.config))
        config["student"] |= self.sweep["students"][cell.student]
        config["teacher"] |= self.sweep["teachers"][cell.teacher]
        config["data"]["context"], config["temperature"] = cell.context, cell.temperature
        return config

    def _taught(self, config, run, name):
        config["teacher"]["checkpoint"] = str(self.teacher_run(name).root)
        return self._at_home(config, run)

    def _at_home(self, config, run):
        """With the standard library read once for all, where paths stay as the run began, should
        the sweep be moved."""
        data = config["data"]
        if data["source"] == "python_stdlib" and not (
            data["directory"] or data["files"] or files.in_bucket(self.root)
        ):
            data["directory"] = str(self.root / "data")
        if DATA_READY in run.facts():
            own = run.config()
            config["teacher"]["checkpoint"] = own["teacher"]["checkpoint"]
            data["directory"] = own["data"]["directory"]
        return config


def read(
    config: Mapping,
    root: pathlib.PurePath,
    *,
    typed: Mapping[str, Any] = (),
    losses: str | None = None,
) -> Plan:
    """The plan of a config with `sweep`, checked before anything is trained.

    Args:
      config: as the user has it.
      root: the sweep's folder.
      typed: dotted key below `config` to value, of what the command line overrides.
      losses: those of the config's that are trained, by commas; all of them if None.

    Raises:
      ValueError: what is no sweep's config, or losses that the config has not.
    """
    config = copy.deepcopy(dict(config))
    if "sweep" not in config:
        raise ValueError("the config has no `sweep`; give one such as --config=configs/choose.py")
    for key, place in _EACH_CELLS_OWN.items():
        if key in typed:
            raise ValueError(f"--config.{key}: each cell has its own; give config.sweep.{place}")
    sweep = config.pop("sweep")
    run_config.check_each(config)
    cells = grid.read(sweep)
    grid.decoded(sweep, cells)
    _refuse_overridden(sweep, typed)
    known = [loss.text for loss in run_config.losses(config)]
    if losses is not None:
        config["losses"] = _cut(known, losses)
    made = Plan(root, config, sweep, cells, offered=len(known))
    _check(made)
    return made


def _refuse_overridden(sweep, typed):
    """What some students or teachers have of their own would not be heard for them."""
    for key in typed:
        part, _, name = key.partition(".")
        group = f"{part}s"
        if group in ("students", "teachers"):
            own = [
                f"config.sweep.{group}.{level}.{name}"
                for level, has in sweep[group].items()
                if name in has
            ]
            if own:
                raise ValueError(
                    f"--config.{key}: some {group} have their own; give {', '.join(own)}"
                )


def _cut(known, wanted):
    try:
        names = jaxdiv.split(wanted)
    except ValueError as error:
        raise ValueError(f"--losses: {error}") from None
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise ValueError(
            f"--losses: {', '.join(wrong) or 'nothing'} is none of the config's, {', '.join(known)}"
        )
    return ",".join(name for name in known if name in names)


def _check(plan):
    names, evaluation, optimizer = (
        plan.losses,
        plan.config["evaluation"],
        plan.config["student"]["optimizer"],
    )
    if names[0] != REFERENCE or "ce" in names or len(names) < 2:
        raise ValueError(
            f"`config.losses` must begin with {REFERENCE}, which the others are compared with, and lack ce, which has "
            f"its gradient; got {', '.join(names)}"
        )
    if TEMPERATURE not in evaluation["temperatures"] or "corpus" not in config_keys.names_in(
        evaluation["contexts"]
    ):
        raise ValueError(
            f"losses are ranked by acceptance on held-out documents at temperature {TEMPERATURE:g}: "
            f"`config.evaluation.temperatures` must have {TEMPERATURE:g} and `config.evaluation.contexts` corpus"
        )
    if plan.sweep["tuning_steps"] <= optimizer["warmup_steps"]:
        raise ValueError(
            f"`config.sweep.tuning_steps` must be above `config.student.optimizer.warmup_steps` = "
            f"{optimizer['warmup_steps']}, got {plan.sweep['tuning_steps']}"
        )
    for cell in plan.cells:
        rates = dict.fromkeys(names, 1.0)
        try:
            run_config.check(plan.cell_config(cell, rates))
            for rate in plan.sweep["rates"]:
                run_config.check(plan.tuning_config(plan.tuned_as(cell), rate))
        except ValueError as error:
            raise ValueError(f"cell {cell.name}: {error}") from None
