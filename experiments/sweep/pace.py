"""How long cells take: guessed from their sizes, and while a sweep runs from what its own cells
took."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

from experiments.sweep.grid import Cell
from experiments.sweep.plan import Plan
from jaxdiv.runs.config_keys import STUDENT_TEXT
from jaxdiv.runs.specs import on_policy_rows

# Seconds on 2 CPU cores, a token of each student: an adapter's of configs/quickstart.py.
_BEGIN = 60.0  # of a cell: data, compilations, files
_TRAINED, _WRITTEN, _MEASURED, _DECODED = 25e-6, 130e-6, 25e-6, 200e-6
_CLASSES, _WIDTH = 1024, 192


def tokens(config: Mapping) -> int:
    """That each student of a run is trained on."""
    return (
        config["student"]["steps"]
        * config["student"]["batch_size"]
        * config["data"]["sequence_length"]
    )


def seconds(plan: Plan, cell: Cell, *, decoded: bool) -> float:
    """A guess at what a cell takes on 2 CPU cores."""
    config = plan.cell_config(cell, dict.fromkeys(plan.losses, 1.0))
    data, evaluation, student = config["data"], config["evaluation"], config["student"]
    size = data["vocabulary"] * config["teacher"]["width"] / (_CLASSES * _WIDTH)
    if student["kind"] == "decoder":  # with embeddings and a head of its own
        size *= 0.4 + 1.2 * student["depth"] * student["width"] / config["teacher"]["width"]
    own = 2 * evaluation["documents"] * evaluation["generated_tokens"]
    measured = own + evaluation["documents"] * evaluation["document_tokens"]
    each = size * (tokens(config) * _TRAINED + measured * _MEASURED)
    if cell.context == STUDENT_TEXT:
        rows = on_policy_rows(config) * student["steps"]
        each += size * rows * (data["sequence_length"] - data["context_prompt"]) * _WRITTEN
    if decoded:
        each += own * _DECODED
    return _BEGIN + each * config["seeds"] * len(plan.losses)


class Pace:
    """Minutes left of some work, whose parts were guessed at beforehand."""

    def __init__(self, guessed: Sequence[float]):
        self._guessed = list(guessed)
        self._done, self._took = 0.0, 0.0

    def left(self) -> float:
        """Minutes: what was guessed of the parts to come, at the pace of those that are done."""
        slower = self._took / self._done if self._done else 1.0
        return slower * sum(self._guessed) / 60

    @contextlib.contextmanager
    def part(self, *, whole: bool) -> Iterator[None]:
        """The next part is done in the block; its time tells of others' if it is the `whole`
        part's."""
        began = time.monotonic()
        yield
        guessed = self._guessed.pop(0)
        if whole:
            self._done += guessed
            self._took += time.monotonic() - began
