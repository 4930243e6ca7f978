"""Flags of the binaries that train: what of the training is profiled, and where its numbers go."""

from collections.abc import Callable, Sequence

from absl import flags

from experiments.common import import_by_path
from jaxdiv.runs import profiling, trackers

PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "FIRST:LAST, the training steps to trace into WORKDIR/profile, both included: the students' in "
    "experiments.distill, the teacher's in experiments.teacher.",
)
TRACKERS = flags.DEFINE_list(
    "trackers",
    [],
    "More places for the training's numbers, each module:class as docs/runs.md has it, by commas.",
)


def profile(total: int) -> range:
    """The steps to trace of a stage of so many. Raises ValueError if they aren't there."""
    if PROFILE.value is None:
        return range(0)
    try:
        return profiling.steps(PROFILE.value, total)
    except ValueError as error:
        raise ValueError(f"--profile: {error}") from None


def also() -> Sequence[Callable[[trackers.Stage], trackers.Tracker]]:
    """What --trackers names. Raises ValueError for what isn't there."""
    return [import_by_path.find(text, flag="trackers", kind="class") for text in TRACKERS.value]
