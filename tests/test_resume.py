"""A run that is stopped and killed, again and again, ends where a run ends that never was."""

import re
import signal

from jaxdiv.runs.workdir import Workdir
from tests import runs
from tests.stops import EVERY, STEPS, TEACHER_STEPS, check_same_end, flags, stop


def test_signals_and_kills_change_nothing(tmp_path):
    texts = runs.write_texts(tmp_path / "texts")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs.succeed("distill", *flags(whole, texts))

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
    code, _ = stop(cut, texts, stage="student", after=stopped + EVERY, sign=signal.SIGKILL)
    assert code == -signal.SIGKILL
    runs.succeed("distill", *flags(cut, texts))

    check_same_end(whole, cut)


def test_what_is_not_finished_is_not_measured_nor_lent(tmp_path):
    texts = runs.write_texts(tmp_path / "texts")
    code, printed = stop(tmp_path / "run", texts, stage="student", after=5, sign=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, printed
    assert "stopped by SIGTERM" in printed
    refused = runs.run("acceptance", f"--workdir={tmp_path / 'run'}")
    runs.check_refusal(refused, f"of {STEPS}; finish it with the command that began it")
    code, _ = stop(tmp_path / "other", texts, stage="teacher", after=5, sign=signal.SIGTERM)
    refused = runs.run(
        "distill",
        *flags(tmp_path / "third", texts),
        f"--config.teacher.checkpoint={tmp_path / 'other'}",
    )
    runs.check_refusal(refused, "`config.teacher.checkpoint`", f"of {TEACHER_STEPS}; finish it")
