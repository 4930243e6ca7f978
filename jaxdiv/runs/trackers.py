"""The one interface behind which a stage's numbers are kept or shown."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class TrackedStage:
    """A stage of training as it begins or goes on.

    Attributes:
      folder: where a tracker may write; it is there.
      name: `teacher` or `student`.
      losses: the first axis of values [losses, S].
      seeds: the second.
      done: the step after which it goes on, 0 at first; a killed run may have written of later
        ones.
      steps: the last step.
      every: steps between measurements on held-out text.
      tokens: of a step's batch.
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
        """Whether there are measurements on held-out text after `step`."""
        return step % self.every == 0 or step == self.steps

    def by_loss(
        self, students: Mapping[str, np.ndarray]
    ) -> dict[str, dict[str, list[float | None]]]:
        """`{metric: {loss: [one number a seed]}}`; what isn't finite is None."""
        return {
            metric: {
                loss: [value if math.isfinite(value) else None for value in row]
                for loss, row in zip(self.losses, np.asarray(values).tolist(), strict=True)
            }
            for metric, values in students.items()
        }

    def flat(self, students: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`{"metric/loss/seed": number}`."""
        return {
            f"{metric}/{loss}/{seed}": value
            for metric, values in students.items()
            for loss, row in zip(self.losses, np.asarray(values).tolist(), strict=True)
            for seed, value in zip(self.seeds, row, strict=True)
        }


class Tracker(Protocol):
    """Keeps or shows the numbers of one stage, for which it is made. Its OSErrors end the run in
    one line."""

    def write(
        self, step: int, students: Mapping[str, np.ndarray], clock: Mapping[str, float]
    ) -> None:
        """Takes what is known after `step`, each step once and in order.

        Args:
          students: metric to values [losses, S] by student, NaN of one that is frozen; the same in
            every run of a seed.
          clock: what the step of all students together took, which differs from run to run.
        """

    def close(self) -> None:
        """The stage ends, also by an error."""


@contextlib.contextmanager
def open_trackers(
    stage: TrackedStage, makers: Sequence[Callable[[TrackedStage], Tracker]]
) -> Iterator[Callable[..., None]]:
    """Yields `write(step, students, seconds)`, which tells a tracker of each maker what
    `Tracker.write` takes."""
    with contextlib.ExitStack() as closing:
        trackers = [closing.enter_context(contextlib.closing(make(stage))) for make in makers]

        def write(step, students, seconds):
            clock = _clock(stage, seconds)
            for tracker in trackers:
                tracker.write(step, students, clock)

        yield write


def _clock(stage, seconds):
    """One program trains all students, so that no student has a time of its own."""
    return {
        "step_seconds": seconds,
        "step_seconds_over_students": seconds / (len(stage.losses) * len(stage.seeds)),
        "tokens_per_second": stage.tokens / seconds,
    }
