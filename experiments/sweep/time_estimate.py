"""Estimates of how long cells take, from their sizes, scaled by what earlier cells took."""

from collections.abc import Iterable, Sequence

from jaxdiv.runs.config_keys import STUDENT_TEXT
from jaxdiv.runs.specs import RunSpec

_START = 60.0  # seconds of a cell for data, compilations and files
# Seconds on 2 CPU cores, a token of each student: measured with configs/quickstart.py.
_TRAIN, _WRITE, _MEASURE, _DECODE = 25e-6, 130e-6, 25e-6, 200e-6
_CLASSES, _WIDTH = 1024, 192


def training_tokens(run: RunSpec) -> int:
    """Returns the tokens that each student of a run is trained on."""
    stage = run.student_stage
    return stage.steps * stage.batch_size * stage.sequence_length


def cell_seconds(run: RunSpec, *, decoded: bool) -> float:
    """Estimates what a cell takes on 2 CPU cores."""
    student, evaluation = run.student, run.evaluation
    size = run.data.vocabulary * run.teacher.width / (_CLASSES * _WIDTH)
    if student.kind == "decoder":  # which has its own embeddings and head
        size *= 0.4 + 1.2 * student.depth * student.width / run.teacher.width
    generated = 2 * evaluation.documents * evaluation.generated_tokens
    measured = generated + evaluation.documents * evaluation.document_tokens
    each = size * (training_tokens(run) * _TRAIN + measured * _MEASURE)
    text = run.on_policy
    if text is not None and text.writer == STUDENT_TEXT:
        rows = text.rows * run.student_stage.steps
        each += size * rows * (text.sequence_length - text.prompt_tokens) * _WRITE
    if decoded:
        each += generated * _DECODE
    return _START + each * len(run.seeds) * len(run.losses)


def minutes_left(estimates: Iterable[float], finished: Sequence[tuple[float, float]]) -> float:
    """Estimates the minutes that parts of some work take.

    Args:
      estimates: seconds of each part to come.
      finished: (estimate, seconds taken) of each finished part, by which the others are scaled.
    """
    expected = sum(estimate for estimate, _ in finished)
    slowdown = sum(seconds for _, seconds in finished) / expected if finished else 1.0
    return slowdown * sum(estimates) / 60
