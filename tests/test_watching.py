"""Watching a run: profiled steps, TensorBoard's numbers, JSON lines, and a tracker of one's own."""

import csv
import datetime
import itertools
import json
import os
import re
import signal
import struct
import warnings

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxdiv.runs import metrics, profiling, progress, trackers
from jaxdiv.runs.workdir import Workdir
from tests import commands, runs, stops

STEPS, EVERY, SAVED, STOP = 20, 4, 5, 7
JSON = "--log_format=json"
# Beside the docs' own: one that stops the run as the system would, and one that is broken.
MORE = f"""
import os, signal

class Stop:
    def __init__(self, stage):
        pass

    def write(self, step, students, clock):
        if step == {STOP - 1}:  # the loop has dispatched one step more
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass

def broken(stage):
    raise RuntimeError("no server")
"""
REFUSED = {
    "--profile=4": "--profile: it must be FIRST:LAST, such as 11:20, got '4'",
    "--profile=4:21": "--profile: FIRST:LAST must be within the steps 1 to 20, FIRST not after",
    "--trackers=my_trackers:Tabel": "there is no `Tabel` in `my_trackers`; known: Table",
    "--config.teacher.step=3": "`steps`",
    "--log_format=jsn": "log_format",
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, texts):
    """The folder of all runs, and ended commands by name: finished, refused, stopped, failed."""
    folder = tmp_path_factory.mktemp("watched")
    page = (runs.ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (folder / "my_trackers.py").write_text(example + MORE, encoding="utf-8")

    def flags(name, *more):
        data = [runs.SMOKE, f"--workdir={folder / name}", f"--config.data.files={texts}/*.txt"]
        return [*data, "--config.losses=kl,tv", "--config.student.learning_rates=tv: 1e-2", *more]

    commands_of = {
        "teacher": {
            "teacher": flags("run", JSON, "--profile=5:6", "--trackers=my_trackers:Table"),
            **{flag: flags("refused", JSON, flag) for flag in REFUSED},
            "text": flags("refused", "--profile=4"),
        },
        "distill": {
            "stopped": flags("run", JSON, "--profile=6:9", "--trackers=my_trackers:Stop"),
            "broken": flags("run", JSON, "--profile=6:7", "--trackers=my_trackers:broken"),
        },
    }
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        for program, by_name in commands_of.items():
            ends = commands.many(program, list(by_name.values()), resumes=True)
            done |= zip(by_name, ends, strict=True)
    return folder, done


def events(done):
    """Returns the events on standard error, whose lines must all be events."""
    records = [json.loads(line) for line in done.stderr.splitlines()]
    times = [datetime.datetime.fromisoformat(event["time"]) for event in records]
    assert all(time.utcoffset() == datetime.timedelta(0) for time in times)
    return records


def of(records, name):
    return [event for event in records if event["event"] == name]


def curves(folder, stage):
    lines = (folder / "curves" / f"{stage}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scalars(folder):
    """Returns the scalars of TensorBoard's event files: tag to step to value."""
    values = {}
    for path in sorted(folder.rglob("events*")):
        content = path.read_bytes()
        while content:
            # A record is its length, a checksum of that, the event and its checksum.
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                by_step = values.setdefault(value.tag, {})
                assert event.step not in by_step, f"{value.tag} twice at step {event.step}"
                by_step[event.step] = value.simple_value
    return values


def profiled(folder):
    """Returns the marked steps of each trace of a run, in order."""
    traces = []
    for path in sorted((folder / "profile").rglob("*.xplane.pb")):
        data = jax.profiler.ProfileData.from_file(str(path))
        marks = [event for plane in data.planes for line in plane.lines for event in line.events]
        stages = [mark for mark in marks if mark.name in ("teacher", "student")]
        # JAX aborts if a warning of its own about a type without a module is made an error here.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            traces.append([(mark.name, dict(mark.stats)["step_num"]) for mark in stages])
    return traces


def test_a_run_that_ends_is_reported_as_json(ended):
    folder, done = ended
    records = events(done["teacher"])
    assert done["teacher"].returncode == 0
    assert records[-1]["event"] == "end"
    assert records[-1]["code"] == 0
    assert not of(records, "error")
    bars = [(event["stage"], event["step"], event["of"]) for event in of(records, "progress")]
    assert bars[:3] == [("data", 0, 3), ("data", 3, 3), ("teacher", 0, STEPS)]
    assert ("teacher", STEPS, STEPS) in bars
    assert bars[-1][0] == "measuring"
    saved = of(records, "checkpoint")
    assert [event["step"] for event in saved] == list(range(SAVED, STEPS + 1, SAVED))
    assert {event["stage"] for event in saved} == {"teacher"}
    assert saved[-1]["path"] == str(folder / "run" / "teacher" / str(STEPS))
    measured = of(records, "metrics")
    assert [event["step"] for event in measured] == list(range(EVERY, STEPS + 1, EVERY))
    written = {record.pop("step"): record for record in curves(folder / "run", "teacher")}
    for event in measured:
        assert event["students"] == written[event["step"]]
        assert event["seeds"] == [0]
        assert event["clock"]["step_seconds"] > 0
    assert any("It lies in" in event["text"] for event in of(records, "line"))


@pytest.mark.parametrize("flag", REFUSED)
def test_a_refused_run_is_reported_as_json(ended, flag):
    folder, done = ended
    (error,) = events(done[flag])
    assert (error["event"], error["code"], done[flag].returncode) == ("error", 2, 2)
    assert REFUSED[flag] in error["text"]
    assert not (folder / "refused").exists()


def test_a_refusal_without_json_is_one_line_of_text(ended):
    runs.check_refusal(ended[1]["text"], REFUSED["--profile=4"])


def test_a_stopped_run_is_reported_as_json(ended):
    folder, done = ended
    records = events(done["stopped"])
    last, code = records[-1], 128 + signal.SIGTERM
    assert (last["event"], last["code"], done["stopped"].returncode) == ("end", code, code)
    assert of(records, "checkpoint")[-1]["step"] == STOP
    *_, noticed, closed, stopped = of(records, "line")
    assert "finishing this step, then saving" in noticed["text"]
    assert str(folder / "run" / "profile") in closed["text"]
    assert f"stopped by SIGTERM after step {STOP}, which is saved" in stopped["text"]
    assert (stopped["stage"], stopped["step"]) == ("student", STOP)


def test_an_unforeseen_error_is_reported_with_its_place_and_traceback(ended):
    line, error = events(ended[1]["broken"])
    assert line["text"] == "2 of the 2 steps to profile were trained before and are left out"
    assert (error["event"], error["stage"], error["code"]) == ("error", "student", 1)
    assert ended[1]["broken"].returncode == 1
    assert error["text"] == "RuntimeError: no server"
    assert "in broken\n" in error["traceback"]


TALKS = """import sys, threading, warnings
from absl import flags, logging
from experiments.common import cli
cli.define_log_format()

def main(_):
    warnings.warn("old")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    logging.error("one more")
    return 3

cli.run(main)
"""


def test_warnings_and_threads_errors_are_reported_as_json():
    done = runs.end(runs.start_code(TALKS, "--log_format", "json", "--traceback"))
    records = [(event["event"], event.get("text"), event.get("code")) for event in events(done)]
    assert records == [
        ("warning", "UserWarning: old", None),
        ("warning", "in a thread: ZeroDivisionError: division by zero", None),
        ("end", None, 3),
    ]


def test_a_signal_while_importing_is_reported_as_json(tmp_path):
    process = runs.start("distill", runs.SMOKE, f"--workdir={tmp_path / 'run'}", JSON)
    (error,) = events(stops.stop_while_importing(process))
    code = 128 + signal.SIGTERM
    assert (error["event"], error["text"], error["code"]) == ("error", "interrupted", code)


def test_traces_hold_the_steps_that_were_asked_for_up_to_a_signal(ended):
    assert profiled(ended[0] / "run") == [
        [("teacher", 5), ("teacher", 6)],
        [("student", 6), ("student", STOP)],
    ]


def test_a_range_of_steps_is_parsed_or_refused():
    assert list(profiling.parse_steps("3:5", 5)) == [3, 4, 5]
    for text in ("", "4", "4:", "a:b", "4:5:6", "-1:3", "٤:٥"):
        with pytest.raises(ValueError, match="it must be FIRST:LAST"):
            profiling.parse_steps(text, 12)
    for text in ("0:3", "5:4", "4:13"):
        with pytest.raises(ValueError, match="FIRST:LAST must be within the steps 1 to 12"):
            profiling.parse_steps(text, 12)


def test_a_profile_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch, capsys):
    def full():
        raise jax.errors.JaxRuntimeError("no space left")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    with profiling.Trace(tmp_path / "profile", "student", range(2, 4), done=0) as trace:
        for number in range(1, 6):
            with trace.step(number):
                pass
    message = " ".join(capsys.readouterr().err.split())
    assert f"can't be written to {tmp_path / 'profile'}: no space left" in message


def test_tensorboard_shows_every_student_and_the_clock_of_all(ended):
    run = Workdir(ended[0] / "run")
    board = scalars(run.curves / "tensorboard" / "student")
    students = [f"{loss}/{seed}" for loss in ("kl", "tv") for seed in (0, 1)]
    names = ("loss", "gradient_norm", "learning_rate", "acceptance")
    clock = {"clock/step_seconds", "clock/step_seconds_over_students", "clock/tokens_per_second"}
    assert board.keys() == {f"{name}/{student}" for name in names for student in students} | clock
    for record in curves(run.root, "student"):
        for name in record.keys() - {"step"}:
            for i, seed in enumerate((0, 1)):
                shown = [board[f"{name}/{loss}/{seed}"][record["step"]] for loss in ("kl", "tv")]
                assert shown == [record[name]["kl"][i], record[name]["tv"][i]]
    assert sorted(board["acceptance/kl/0"]) == [EVERY]
    optimizer, steps = run.config()["student"]["optimizer"], run.config()["student"]["steps"]
    at = np.arange(STOP) - optimizer["warmup_steps"]
    cosine = (1 + np.cos(np.pi * at / (steps - optimizer["warmup_steps"]))) / 2
    rates = np.where(at < 0, 1 + at / optimizer["warmup_steps"], cosine)
    for student, peak in {"kl/0": optimizer["learning_rate"], "tv/1": 1e-2}.items():
        shown = [board[f"learning_rate/{student}"][step] for step in range(1, STOP + 1)]
        np.testing.assert_allclose(shown, peak * rates, rtol=1e-5, atol=1e-9)
    config = run.config()
    tokens = config["student"]["batch_size"] * config["data"]["sequence_length"]
    for step, seconds in board["clock/step_seconds"].items():
        assert 0 < seconds < 600
        assert board["clock/step_seconds_over_students"][step] == pytest.approx(seconds / 4)
        assert board["clock/tokens_per_second"][step] == pytest.approx(tokens / seconds)
    first, slowest = board["clock/step_seconds"][1], max(board["clock/step_seconds"].values())
    assert first == slowest  # it compiles


def test_the_docs_tracker_gets_every_number(ended):
    folder, _ = ended
    with open(folder / "run" / "curves" / "teacher.csv", encoding="utf-8", newline="") as file:
        rows = [(int(step), name, float(value)) for step, name, value in csv.reader(file)]
    shown = scalars(folder / "run" / "curves" / "tensorboard" / "teacher")
    expected = {
        (step, tag.removeprefix("clock/")): value
        for tag, at in shown.items()
        for step, value in at.items()
    }
    assert len(rows) == len(expected)
    for step, name, value in rows:
        assert value == pytest.approx(expected[step, name], rel=1e-6)


def test_trackers_are_closed_also_when_one_fails(tmp_path):
    closed = []

    class Noting:
        def __init__(self, stage):
            self.name = stage.name

        def write(self, step, students, clock):
            if step == 2:
                raise OSError("no room")

        def close(self):
            closed.append(self.name)

    stage = trackers.TrackedStage(tmp_path, "student", ["kl"], [3])
    numbers = {"loss": np.array([[np.nan]])}

    def run():
        with trackers.open_trackers(stage, [*metrics.BUILT_IN, Noting, Noting]) as write:
            write(1, numbers, 1.0)
            write(2, numbers, 1.0)

    with pytest.raises(OSError, match="no room"):
        run()
    assert closed == ["student", "student"]


def lines_of_a_bar(seconds, count, capsys, **options):
    """The lines in a log of a bar whose every step takes `seconds`."""
    time = itertools.count(0.0, seconds)
    with progress.bar("teacher", count, clock=lambda: next(time), **options) as advance:
        for step in range(count - options.get("done", 0)):
            advance({"kl": 8.0 / (step + 1), "tv": 0.5})
    error = capsys.readouterr().err
    assert error.replace("\n", " ").isprintable()
    return error.splitlines()


def test_a_bar_in_a_log_is_plain_lines(capsys):
    lines = lines_of_a_bar(1.0, 200, capsys, tokens=96)
    assert [line.split()[1] for line in lines] == [f"{n}/200" for n in range(20, 201, 20)]
    assert lines[0] == (
        "teacher   20/200 (10%)  1.00 steps/s  96 tokens/s  loss kl 0.4, tv 0.5  0:03:00 left"
    )
    assert lines[-1].endswith("in 0:03:21")
    # A slow stage has a line every 30 s, a short one its last line, a resumed one its own rate.
    slow = [int(line.split()[1].partition("/")[0]) for line in lines_of_a_bar(10.0, 100, capsys)]
    assert max(np.diff(slow)) == 3
    assert len(lines_of_a_bar(0.01, 100, capsys)) == 1
    resumed = lines_of_a_bar(1.0, 20, capsys, done=10)
    assert [line.split()[1] for line in resumed] == ["16/20", "18/20", "20/20"]
    assert "1.00 steps/s" in resumed[0]
    with pytest.raises(KeyError), progress.bar("data", 3):
        raise KeyError
    assert not capsys.readouterr().err
