"""The training loop of a stage: steps, curves, checkpoints, and an orderly end after a signal."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from jaxdiv import files
from jaxdiv.runs import processes, profiling, progress, trackers
from jaxdiv.runs.checkpoints import Checkpoints
from jaxdiv.runs.metrics import BUILT_IN
from jaxdiv.runs.specs import StageSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import sharding
from jaxdiv.training.state import TrainState
from jaxdiv.training.step import Step, learning_rate

_SIGNAL_STEPS = 8  # between which several processes don't ask each other for signals
TrackerMaker = Callable[[trackers.TrackedStage], trackers.Tracker]


class Stopped(Exception):
    """A signal ended the loop after `step`, which was saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, which is saved"
        )
        self.signum = signum


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Yields a list that takes the first SIGINT or SIGTERM; the second one ends the process."""
    signums: list[int] = []

    def note(signum, _frame):
        if signums:
            os._exit(128 + signum)
        signums.append(signum)
        progress.log("finishing this step, then saving; once more to end at once")

    handlers = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signums
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@dataclasses.dataclass(frozen=True)
class Monitoring:
    """Profile and trackers of a stage, beside the run's own curves.

    Attributes:
      profile: steps to trace into the run's `profile/`.
      trackers: makers of further trackers.
    """

    profile: range = range(0)
    trackers: Sequence[TrackerMaker] = ()


@dataclasses.dataclass(frozen=True)
class Training:
    """The training of one stage.

    Attributes:
      spec: the stage.
      folder: the stage's checkpoints.
      initial_state: makes the state that a run without a checkpoint starts from.
      step: the training step, from `make_step`.
      teacher: the parameters that `step` takes for the teacher.
      batches: a Grain iterator over this process's rows of batches.
      measure: maps a state to held-out metrics [losses, S] on the device; called every
        `spec.log_every` steps.
      report_diverged: called with the step, which students are finite, [losses, S], and the batch,
        when a student is not finite for the first time.
    """

    spec: StageSpec
    folder: pathlib.PurePath
    initial_state: Callable[[], TrainState]
    step: Step
    teacher: Any
    batches: Iterator
    measure: Callable[[TrainState], Mapping[str, jax.Array]]
    report_diverged: Callable[[int, np.ndarray, Mapping], None]


def run_stage(
    training: Training, workdir: Workdir, mesh: Mesh, monitoring: Monitoring | None = None
) -> TrainState:
    """Trains a stage from its newest checkpoint, or from the start, and returns its last state.

    Monitoring None keeps the run's own curves alone.

    Raises:
      Stopped: SIGINT or SIGTERM came; the step under way was finished and saved.
      OSError: a checkpoint or a curve can't be written.
    """
    spec, monitoring = training.spec, monitoring or Monitoring()
    is_first, tokens = processes.is_first(), spec.batch_size * spec.sequence_length
    with (
        progress.event_fields(stage=spec.name),
        Checkpoints(training.folder, keep=spec.checkpoint.keep) as checkpoints,
        files.cached(workdir.curves) as curves,
    ):
        state = _restore(training, checkpoints, mesh)
        done = int(state.step)
        steps_to_trace = monitoring.profile if is_first else range(0)
        trace = profiling.Trace(workdir.root / "profile", spec.name, steps_to_trace, done=done)
        if done == spec.steps:
            return state
        counts = {"done": done, "steps": spec.steps, "every": spec.log_every, "tokens": tokens}
        stage = trackers.TrackedStage(curves.local, spec.name, spec.members, spec.seeds, **counts)
        makers = [*BUILT_IN, *monitoring.trackers] if is_first else []
        with (
            trackers.open_trackers(stage, makers) as write,
            progress.bar(spec.name, spec.steps, done=done, tokens=tokens) as advance,
            trace,
        ):
            finite = np.stack(sharding.gather(state.finite, mesh))
            record = _Record(training, stage, finite, write, advance)
            return _fit(state, training, record, mesh, checkpoints, curves.send, trace)


def _restore(training: Training, checkpoints: Checkpoints, mesh: Mesh) -> TrainState:
    """Restores the newest whole checkpoint and its position in the batches, or starts anew."""
    latest = checkpoints.latest()
    for fault in checkpoints.damaged():
        progress.log(f"{fault}; going on from step {latest or 0}")
    if latest is None:
        return training.initial_state()
    # From shapes alone, since two states at once may exceed the memory.
    shapes = sharding.shapes(jax.eval_shape(training.initial_state), mesh)
    tree, position = checkpoints.restore(shapes.to_checkpoint())
    training.batches.set_state(position["batches"])
    return TrainState.from_checkpoint(tree)


class _Record:
    """Metrics of each step, fetched once the next step is dispatched, so that no device waits."""

    def __init__(
        self,
        training: Training,
        stage: trackers.TrackedStage,
        finite: Bool[np.ndarray, "losses S"],
        write: Callable,
        advance: Callable,
    ):
        self._training, self._stage, self._finite = training, stage, finite
        self._write, self._advance = write, advance
        steps, optimizers = training.spec.steps, training.spec.optimizers
        rates = [learning_rate(optimizer, steps)(jnp.arange(steps)) for optimizer in optimizers]
        self._rates = np.stack(rates, axis=1)
        self._pending = None
        self._fetched = time.perf_counter()

    def add(self, number: int, state: TrainState, batch: Mapping, metrics: dict, start: float):
        """Takes the metrics of step `number`, dispatched at `start`; passes on the step before.

        State and metrics may still be under way on the device.
        """
        # Dispatched before the next step, which takes over the state's buffers.
        held_out = self._training.measure(state) if self._stage.measures(number) else {}
        self.flush()
        self._pending = (number, batch, metrics, held_out, start)

    def flush(self) -> None:
        """Passes on the metrics of the step added last, if that was not done before."""
        if not self._pending:
            return
        (number, batch, metrics, held_out, start), self._pending = self._pending, None
        values = {name: np.asarray(value) for name, value in metrics.items()}
        fetched = time.perf_counter()
        # The device may have begun this step only once it had ended the one before.
        seconds, self._fetched = fetched - max(start, self._fetched), fetched
        before, self._finite = self._finite, values.pop("finite")
        if (before & ~self._finite).any():
            self._training.report_diverged(number, self._finite, batch)
        values["learning_rate"] = self._rates[number - 1][:, None]
        values |= {name: np.asarray(value) for name, value in held_out.items()}
        values = {name: np.where(self._finite, value, np.nan) for name, value in values.items()}
        self._write(number, values, seconds)
        members = zip(self._training.spec.members, values["loss"], self._finite, strict=True)
        self._advance({name: float(row[keep].mean()) for name, row, keep in members if keep.any()})


def _fit(
    state: TrainState,
    training: Training,
    record: _Record,
    mesh: Mesh,
    checkpoints: Checkpoints,
    send_curves: Callable[[], None],
    trace: profiling.Trace,
) -> TrainState:
    """Trains from `state.step` to the last step; each checkpoint goes with the curves up to it."""
    last, rows = training.spec.steps, sharding.BatchSharding(mesh, training.spec.batch_size)
    with _noting_signals() as signums:
        for number in range(int(state.step) + 1, last + 1):
            checkpoints.raise_error()
            with trace.step(number):
                start = time.perf_counter()
                batch = rows.put_local(next(training.batches))
                state, metrics = training.step(state, training.teacher, batch)
                record.add(number, state, batch, metrics, start)
                if number == trace.last:
                    record.flush()
            is_due = number % training.spec.checkpoint.every == 0 or number == last
            # Several processes agree on the step to stop at, for which they wait for the device.
            asks = is_due or number % _SIGNAL_STEPS == 0 or not processes.is_multiprocess()
            signum = processes.maximum(*signums or [0]) if asks else 0
            if is_due or signum:
                record.flush()
                send_curves()
                position = {"batches": training.batches.get_state()}
                checkpoints.save(number, state.to_checkpoint(), position)
            if signum:
                checkpoints.wait()
                raise Stopped(signum, number)
    return state
