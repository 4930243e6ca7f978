"""The interface of trackers, which store or show the numbers of a stage of training."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

Students = Mapping[str, np.ndarray]  # metric to values [losses, seeds]
Clock = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class TrackedStage:
    """A stage of training as it starts or resumes.

    Attributes:
      folder: an existing folder that a tracker may write to.
      name: `teacher` or `student`.
      losses: the first axis of values [losses, seeds].
      seeds: the second axis.
      done: the step that the stage resumes after, 0 in a new run. A killed run may have written
        numbers of later steps.
      steps: the last step.
      every: steps between measurements on held-out text.
      tokens: tokens of a step's batch.
    """

    folder: pathlib.Path
    name: str
    losses: Sequence[str]
    seeds: Sequence[int]
    done: int = 0
    steps: int = 1
    every: int = 1
    tokens: int = 1

    def measures(self, step: int) -> bool:
        """Returns True if the students are measured on held-out text after `step`."""
        return step % self.every == 0 or step == self.steps

    def by_loss(self, students: Students) -> dict[str, dict[str, list[float | None]]]:
        """Returns `{metric: {loss: [one number a seed]}}`, with None for non-finite values."""
        return {
            metric: {
                loss: [value if math.isfinite(value) else None for value in row]
                for loss, row in zip(self.losses, np.asarray(values).tolist(), strict=True)
            }
            for metric, values in students.items()
        }

    def flat(self, students: Students) -> dict[str, float]:
        """Returns `{"metric/loss/seed": number}`."""
        return {
            f"{metric}/{loss}/{seed}": value
            for metric, values in students.items()
            for loss, row in zip(self.losses, np.asarray(values).tolist(), strict=True)
            for seed, value in zip(self.seeds, row, strict=True)
        }


class Tracker(Protocol):
    """Stores or shows the numbers of one stage. Its OSErrors end the run with one line."""

    def write(self, step: int, students: Students, clock: Clock) -> None:
        """Takes the numbers after `step`; called once for each step, in order.

        Args:
          step: from 1.
          students: metric to values [losses, seeds], NaN of frozen students; the same in every run
            of a seed.
          clock: times of the step of all students together, which differ from run to run.
        """

    def close(self) -> None:
        """Closes the tracker; called when the stage ends, also by an error."""


@contextlib.contextmanager
def open_trackers(
    stage: TrackedStage, makers: Sequence[Callable[[TrackedStage], Tracker]]
) -> Iterator[Callable[[int, Students, float], None]]:
    """Yields `write(step, students, seconds)`, which calls `write` of a tracker of each maker."""
    with contextlib.ExitStack() as closing:
        trackers = [closing.enter_context(contextlib.closing(make(stage))) for make in makers]

        def write(step, students, seconds):
            # One program trains all students, so that no student has a time of its own.
            clock = {
                "step_seconds": seconds,
                "step_seconds_over_students": seconds / (len(stage.losses) * len(stage.seeds)),
                "tokens_per_second": stage.tokens / seconds,
            }
            for tracker in trackers:
                tracker.write(step, students, clock)

        yield write
