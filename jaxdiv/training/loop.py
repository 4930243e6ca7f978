"""The training loop: steps, curves, checkpoints, and an end that loses nothing."""

import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiv import files
from jaxdiv.runs import processes, profiling, progress, sharding, trackers
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.metrics import BUILT_IN
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training.state import TrainState
from jaxdiv.training.step import learning_rate


class Stopped(Exception):
    """A signal ended the loop after `step`, which was saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, which is saved"
        )
        self.signum = signum


class Interrupt:
    """Turns the first SIGINT or SIGTERM into `signum`, for the loop to see; the second ends the
    process."""

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
        progress.log("finishing this step, then saving; once more to end at once")


def run_stage(
    config: Mapping,
    workdir: Workdir,
    *,
    stage: str,
    folder: pathlib.PurePath,
    names: Sequence[str],
    seeds: Sequence[int],
    optimizers: Sequence[Mapping],
    mesh: Mesh,
    begin: Callable[[], TrainState],
    batches: Iterator,
    profile: range = range(0),
    also: Sequence[Callable[[trackers.TrackedStage], trackers.Tracker]] = (),
    **fit_arguments: Any,
) -> TrainState:
    """Runs `fit` for the config's `stage` between its bar, its trackers and its checkpoints in
    `folder`.

    Args:
      optimizers: the settings of each name's, whose learning rate is told.
      mesh: that the state lies on, and whose rows of this process `batches` are.
      begin: makes the state that a run without a checkpoint starts from.
      profile: the steps to trace, into the run's `profile/`.
      also: makers of trackers beside every run's own.
    """
    steps, per_step = (
        config[stage]["steps"],
        config[stage]["batch_size"] * config["data"]["sequence_length"],
    )
    rates = np.stack([learning_rate(own, steps)(jnp.arange(steps)) for own in optimizers], axis=1)
    with (
        progress.event_fields(stage=stage),
        Checkpoints(
            folder, every=config["checkpoint"]["every"], keep=config["checkpoint"]["keep"]
        ) as checkpoints,
        files.cached(workdir.curves) as curves,
    ):
        state = _restore(checkpoints, begin, mesh, batches)
        done = int(state.step)
        traced = profile if processes.is_first() else range(0)
        trace = profiling.Trace(workdir.root / "profile", stage, traced, done=done)
        if done == steps:
            return state
        seen = trackers.TrackedStage(
            curves.local, stage, names, seeds, done, steps, config["log"]["every"], per_step
        )
        with (
            trackers.open_trackers(
                seen, [*BUILT_IN, *also] if processes.is_first() else []
            ) as write,
            progress.bar(stage, steps, done=done, tokens=per_step) as advance,
            trace,
        ):
            return fit(
                state,
                alive=np.stack(sharding.whole(state.alive, mesh)),
                stage=seen,
                rates=rates,
                batches=batches,
                spread=sharding.Rows(mesh, config[stage]["batch_size"]).put,
                checkpoints=checkpoints,
                write=write,
                send=curves.send,
                advance=advance,
                tracing=trace.step,
                **fit_arguments,
            )


def _restore(checkpoints, begin, mesh, batches):
    """The newest whole checkpoint's state, with `batches` where it was left; one that begins if
    there is none."""
    latest = checkpoints.latest()
    for fault in checkpoints.damaged():
        progress.log(f"{fault}; going on from step {latest or 0}")
    if latest is None:
        return begin()
    # Of its shapes alone: two states at once may be more than there is room for.
    state, position = checkpoints.restore(sharding.shapes(jax.eval_shape(begin), mesh))
    batches.set_state(position["batches"])
    return state


def fit(
    state: TrainState,
    *,
    alive: np.ndarray,
    step: Callable[[TrainState, Any, Mapping], tuple[TrainState, dict]],
    teacher: Any,
    batches: Iterator,
    spread: Callable[[Mapping], Mapping],
    stage: trackers.TrackedStage,
    rates: np.ndarray,
    checkpoints: Checkpoints,
    write: Callable[[int, Mapping, float], None],
    send: Callable[[], None],
    advance: Callable[[], None],
    tracing: Callable[[int], AbstractContextManager],
    measure: Callable[[TrainState], dict[str, np.ndarray]],
    report_diverged: Callable[[int, np.ndarray, Mapping], None],
) -> TrainState:
    """Trains from `state.step` to the stage's last step.

    Args:
      alive: [losses, S], which students are.
      step: state, metrics = step(state, teacher, batch).
      batches: a Grain iterator, at the state's step.
      spread: puts a batch where the step has it.
      rates: [steps, losses], the learning rates of each of the stage's steps.
      write: of `trackers.open_trackers`.
      send: called before each checkpoint, which goes on after what `write` was told.
      advance: called once a step.
      tracing: gives the context of the step of a number.
      measure: what is worth measuring beside the step's own metrics, where the stage has it so.
      report_diverged: called with the step, which students [losses, S] are alive and the batch, when
        one is not for the first time.

    Raises:
      Stopped: SIGINT or SIGTERM came; the step under way was finished and saved.
      OSError: a checkpoint can't be written, or `write` or `send` raises it.
    """
    with Interrupt() as interrupt:
        for number in range(int(state.step) + 1, stage.steps + 1):
            checkpoints.raise_error()
            with tracing(number):
                began = time.perf_counter()
                batch = spread(next(batches))
                state, metrics = step(state, teacher, batch)
                metrics = {name: np.asarray(values) for name, values in metrics.items()}
                seconds = time.perf_counter() - began
            now = metrics.pop("alive")
            if (alive & ~now).any():
                report_diverged(number, now, batch)
            alive = now
            metrics["learning_rate"] = rates[number - 1][:, None]
            if stage.measures(number):
                metrics |= measure(state)
            write(
                number,
                {name: np.where(alive, values, np.nan) for name, values in metrics.items()},
                seconds,
            )
            advance()
            signum = processes.maximum(interrupt.signum or 0)
            if number % checkpoints.every == 0 or number == stage.steps or signum:
                send()
                checkpoints.save(number, state, {"batches": batches.get_state()})
            if signum:
                checkpoints.wait()
                raise Stopped(signum, number)
    return state
