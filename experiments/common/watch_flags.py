"""Flags of programs that train: the steps to profile, and more trackers for the metrics."""

from collections.abc import Callable, Sequence

from absl import flags

from experiments.common import import_by_path
from jaxdiv.runs import profiling
from jaxdiv.runs import trackers as run_trackers

PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "FIRST:LAST, the training steps to trace into WORKDIR/profile, both included: the students' in "
    "experiments.distill, the teacher's in experiments.teacher.",
)
TRACKERS = flags.DEFINE_list(
    "trackers",
    [],
    "More trackers of the training metrics, separated by commas, each module:class as in "
    "docs/runs.md.",
)


def profiled_steps(total: int) -> range:
    """Returns the steps to trace of a stage of `total` steps. Raises ValueError outside of it."""
    if PROFILE.value is None:
        return range(0)
    try:
        return profiling.parse_steps(PROFILE.value, total)
    except ValueError as error:
        raise ValueError(f"--profile: {error}") from None


def trackers() -> Sequence[Callable[[run_trackers.TrackedStage], run_trackers.Tracker]]:
    """Returns the classes that --trackers names. Raises ValueError for an unknown one."""
    return [import_by_path.find(text, flag="trackers", kind="class") for text in TRACKERS.value]
