"""A run that is stopped and killed, again and again, ends as a run that never was."""

import re
import signal

from jaxdiv.runs.workdir import Workdir
from tests import runs
from tests.stops import EVERY, STEPS, TEACHER_STEPS, StoppedRun, flags, step_of


def test_signals_and_kills_change_nothing(tmp_path, texts):
    cut = StoppedRun(tmp_path / "cut", texts, tmp_path / "whole")
    done = runs.end(runs.start("distill", *flags(cut.whole, texts)))
    assert done.returncode == 0, done.stderr

    def stop(stage, after, sign):
        """Stops the run by `sign` once its stage is past a step; returns all that it printed."""
        done = cut.stop(lambda: step_of(cut.folder, stage) > after, sign)
        code = -sign if sign == signal.SIGKILL else 128 + sign
        assert done.returncode == code, done.stderr
        return " ".join(done.stderr.split())

    assert "stopped by SIGTERM" in stop("teacher", 5, signal.SIGTERM)
    # No run takes over a teacher whose training did not end.
    checkpoint = f"--config.teacher.checkpoint={cut.folder}"
    refused = runs.run("distill", *flags(tmp_path / "other", texts), checkpoint)
    runs.check_refusal(refused, "`config.teacher.checkpoint`", f"of {TEACHER_STEPS}; finish it")
    stop("teacher", 30, signal.SIGKILL)

    # Steps are quick: stop until it was once at a step that the schedule would not have saved.
    after, stopped = 5, EVERY
    while stopped % EVERY == 0:
        printed = stop("student", after, signal.SIGINT)
        stopped = int(re.search(r"stopped by SIGINT after step (\d+), which is saved", printed)[1])
        after = stopped + 1
    assert str(stopped) in {path.name for path in Workdir(cut.folder).students.iterdir()}
    refused = runs.run("acceptance", f"--workdir={cut.folder}")
    runs.check_refusal(refused, f"of {STEPS}; finish it with the command that began it")
    stop("student", stopped + EVERY, signal.SIGKILL)
    cut.finish()
