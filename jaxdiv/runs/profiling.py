"""Traces of some training steps, by jax.profiler."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

from jaxdiv import files
from jaxdiv.runs import progress


def parse_steps(text: str, total: int) -> range:
    """Returns the steps of `FIRST:LAST`, both included.

    Raises:
      ValueError: the text has another form, or is not within the stage's steps 1..`total`.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if not match:
        raise ValueError(f"it must be FIRST:LAST, such as 11:20, got {text!r}")
    first, last = map(int, match.groups())
    if not 1 <= first <= last <= total:
        raise ValueError(
            f"FIRST:LAST must be within the steps 1 to {total}, FIRST not after LAST, got {text}"
        )
    return range(first, last + 1)


class Trace:
    """Traces those of `steps` that come after step `done`, each marked by its number.

    A trace that can't be written is reported and does not end the training.

    Args:
      folder: of the traces.
      name: the stage's, which marks its steps.
      steps: to trace.
      done: the last step of earlier starts.

    Raises:
      OSError: the folder can't be created.
    """

    def __init__(self, folder: pathlib.PurePath, name: str, steps: range, *, done: int):
        self._folder, self._name, self._running = folder, name, contextlib.ExitStack()
        self._cache = files.BucketCache(folder)
        self._steps = steps[max(done + 1 - steps.start, 0) :]
        if self._steps:
            self._cache.local.mkdir(exist_ok=True)
        if left_out := len(steps) - len(self._steps):
            progress.log(
                f"{left_out} of the {len(steps)} steps to profile were trained before and are "
                "left out"
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._running.close()
        self._cache.close()

    @property
    def last(self) -> int | None:
        """The last step to be traced."""
        return self._steps[-1] if self._steps else None

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Traces the block, training step `number`, if it is one of the steps."""
        if number not in self._steps:
            yield
            return
        if number == self._steps[0]:
            jax.profiler.start_trace(self._cache.local)
            self._running.callback(self._stop)
        with jax.profiler.StepTraceAnnotation(self._name, step_num=number):
            yield
        if number == self.last:
            self._running.close()

    def _stop(self) -> None:
        try:
            jax.profiler.stop_trace()
            self._cache.send()
        except (jax.errors.JaxRuntimeError, OSError) as error:
            progress.log(f"the profile can't be written to {self._folder}: {error}")
        else:
            progress.log(f"profiled, see {self._folder}")
