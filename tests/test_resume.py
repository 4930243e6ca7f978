"""A run that is stopped and killed, again and again, ends as a run that never was."""

import re
import signal

from jaxdiv.runs.workdir import Workdir
from tests import runs
from tests.stops import EVERY, STEPS, TEACHER_STEPS, check_same_end, flags, stop


def check_not_lent(folder, texts, other):
    """Checks that no run takes over a teacher whose training did not end."""
    checkpoint = f"--config.teacher.checkpoint={folder}"
    done = runs.run("distill", *flags(other, texts), checkpoint)
    runs.check_refusal(done, "`config.teacher.checkpoint`", f"of {TEACHER_STEPS}; finish it")


def check_not_measured(folder):
    """Checks that students are not measured before their training ended."""
    done = runs.run("acceptance", f"--workdir={folder}")
    runs.check_refusal(done, f"of {STEPS}; finish it with the command that began it")


def test_signals_and_kills_change_nothing(tmp_path, texts):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = runs.end(runs.start_fresh("distill", *flags(whole, texts)))
    assert done.returncode == 0, done.stderr

    code, printed = stop(cut, texts, stage="teacher", after=5, sign=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, printed
    assert "stopped by SIGTERM" in printed
    check_not_lent(cut, texts, tmp_path / "other")
    code, _ = stop(cut, texts, stage="teacher", after=30, sign=signal.SIGKILL)
    assert code == -signal.SIGKILL

    # Steps are quick: stop until it was once at a step that the schedule would not have saved.
    after, stopped = 5, EVERY
    while stopped % EVERY == 0:
        code, printed = stop(cut, texts, stage="student", after=after, sign=signal.SIGINT)
        assert code == 128 + signal.SIGINT, printed
        stopped = int(re.search(r"stopped by SIGINT after step (\d+), which is saved", printed)[1])
        after = stopped + 1
    assert str(stopped) in {path.name for path in Workdir(cut).students.iterdir()}
    check_not_measured(cut)
    code, _ = stop(cut, texts, stage="student", after=stopped + EVERY, sign=signal.SIGKILL)
    assert code == -signal.SIGKILL

    runs.succeed("distill", *flags(cut, texts))
    check_same_end(whole, cut)
