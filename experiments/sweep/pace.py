"""How long cells take: guessed from their sizes, and while a sweep runs from what its own cells took."""

import time
from collections.abc import Mapping, Sequence

from experiments.sweep.grid import Cell
from experiments.sweep.plan import Plan
from jaxdiv.training import own_text

# Seconds on 2 CPU cores, for students of configs/quickstart.py.
_BEGIN = 60.0  # data, compilations, files
_TRAINED, _MEASURED, _DECODED = 17e-6, 60e-6, 0.02  # a token of each student
_WRITTEN = 40e-6  # a token that a student writes
_CLASSES, _WIDTH = 1024, 192


def tokens(config: Mapping) -> int:
    """That each student of a run is trained on."""
    return config["student"]["steps"] * config["student"]["batch_size"] * config["data"]["sequence_length"]


def seconds(plan: Plan, cell: Cell, *, decoded: bool) -> float:
    """A guess at what a cell takes on 2 CPU cores."""
    config = plan.cell_config(cell, dict.fromkeys(plan.losses, 1.0))
    evaluation, data = config["evaluation"], config["data"]
    size = data["vocabulary"] * config["teacher"]["width"] / (_CLASSES * _WIDTH)
    measured = evaluation["documents"] * (evaluation["document_tokens"] + 2 * evaluation["generated_tokens"])
    each = tokens(config) * _TRAINED + measured * _MEASURED
    if cell.context == own_text.STUDENT:
        rows = own_text.rows(config) * config["student"]["steps"]
        each += rows * (data["sequence_length"] - data["context_prompt"]) * _WRITTEN
    if decoded:
        each += 2 * evaluation["documents"] * _DECODED
    return _BEGIN + size * each * config["seeds"] * len(plan.losses)


class Pace:
    """Minutes left of some work, whose parts were guessed at beforehand."""

    def __init__(self, guessed: Sequence[float]):
        self._guessed = list(guessed)
        self._done, self._took, self._began = 0.0, 0.0, time.monotonic()

    def left(self) -> float:
        """Minutes: what was guessed of the parts to come, at the pace of those that are done."""
        slower = self._took / self._done if self._done else 1.0
        return slower * sum(self._guessed) / 60

    def begin(self) -> None:
        """The next part begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """It is done."""
        self._done += self._guessed.pop(0)
        self._took += time.monotonic() - self._began
