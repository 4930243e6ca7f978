"""The training loop: steps, curves, checkpoints, and an end that loses nothing."""

import os
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxdiv.training import processes, progress, sharding
from jaxdiv.training.checkpoints import Checkpoints
from jaxdiv.training.metrics import Curves
from jaxdiv.training.state import TrainState
from jaxdiv.training.workdir import Workdir


class Stopped(Exception):
    """A signal ended the loop after `step`, which was saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}, which is saved")
        self.signum = signum


class Interrupt:
    """Turns the first SIGINT or SIGTERM into `signum`, for the loop to see; the second ends the process."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self):
        self.signum = None
        self._before = {signum: signal.signal(signum, self._note) for signum in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum, _frame):
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        progress.say("finishing this step, then saving; once more to end at once")


def run_stage(
    config: Mapping,
    workdir: Workdir,
    *,
    stage: str,
    folder: pathlib.Path,
    names: Sequence[str],
    seeds: Sequence[int],
    mesh: Mesh,
    state: TrainState,
    batches: Iterator,
    **fit_arguments: Any,
) -> TrainState:
    """Runs `fit` for the config's `stage` between its bar, its curves and its checkpoints in `folder`.

    `batches` are of the rows that this process's devices in `mesh` need.
    """
    steps, per_step = config[stage]["steps"], config[stage]["batch_size"] * config["data"]["sequence_length"]
    with Checkpoints(folder, every=config["checkpoint"]["every"], keep=config["checkpoint"]["keep"]) as checkpoints:
        state = _restore(checkpoints, state, batches)
        done = int(state.step)
        if done == steps:
            return state
        with (
            Curves(workdir.curves, stage, names, seeds, step=done) as curves,
            progress.bar(stage, steps, done=done, tokens=per_step) as advance,
        ):
            return fit(
                state,
                steps=steps,
                batches=batches,
                spread=sharding.Rows(mesh, config[stage]["batch_size"]).put,
                checkpoints=checkpoints,
                curves=curves,
                advance=advance,
                measure_every=config["log"]["every"],
                **fit_arguments,
            )


def _restore(checkpoints, state, batches):
    """The newest whole checkpoint's state, with `batches` where it was left; `state` itself if there is none."""
    latest = checkpoints.latest()
    for fault in checkpoints.damaged():
        progress.say(f"{fault}; going on from step {latest or 0}")
    if latest is None:
        return state
    state, position = checkpoints.restore(state)
    batches.set_state(position["batches"])
    return state


def fit(
    state: TrainState,
    *,
    step: Callable[[TrainState, Any, Mapping], tuple[TrainState, dict]],
    teacher: Any,
    batches: Iterator,
    spread: Callable[[Mapping], Mapping],
    steps: int,
    checkpoints: Checkpoints,
    curves: Curves,
    advance: Callable[[], None],
    measure: Callable[[TrainState], dict[str, np.ndarray]],
    measure_every: int,
    report_dead: Callable[[int, np.ndarray, Mapping], None],
) -> TrainState:
    """Trains from `state.step` to `steps`.

    Args:
      step: state, metrics = step(state, teacher, batch).
      batches: a Grain iterator, at the state's step.
      spread: puts a batch where the step has it.
      advance: called once a step.
      measure: what is worth measuring beside the step's own metrics, every `measure_every` steps and at the end.
      report_dead: called with the step, which students [losses, S] are alive and the batch, when one is not for the
        first time.

    Raises:
      Stopped: SIGINT or SIGTERM came; the step under way was finished and saved.
      OSError: a checkpoint or the curves can't be written.
    """
    alive = np.stack([np.asarray(group) for group in state.alive])
    with Interrupt() as interrupt:
        for number in range(int(state.step) + 1, steps + 1):
            checkpoints.raise_error()
            batch = spread(next(batches))
            state, metrics = step(state, teacher, batch)
            metrics = {name: np.asarray(values) for name, values in metrics.items()}
            now = metrics.pop("alive")
            if (alive & ~now).any():
                report_dead(number, now, batch)
            alive = now
            if number % measure_every == 0 or number == steps:
                metrics |= measure(state)
            curves.write(number, {name: np.where(alive, values, np.nan) for name, values in metrics.items()})
            advance()
            signum = processes.largest(interrupt.signum or 0)
            if number % checkpoints.every == 0 or number == steps or signum:
                checkpoints.save(number, state, {"batches": batches.get_state()})
            if signum:
                checkpoints.wait()
                raise Stopped(signum, number)
    return state
