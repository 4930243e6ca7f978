"""The sweep of losses: its grid, its folder, and one small sweep that is killed."""

import json
import re
import signal

import pandas as pd
import pytest

from configs import choose
from experiments.sweep import grid, pace, plan, report, study, sums, tuning
from experiments.sweep import runs as sweep_runs
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.schema import UNTRAINED
from jaxdiv.training import run_data
from tests import commands, runs, stops

EXTRA = "decoder1-flat-corpus-T1"


def config(**changes):
    made = choose.get_config().to_dict()
    made["sweep"] |= changes
    return made


def read(folder, losses=None, typed=(), **changes):
    return plan.read(config(**changes), folder, typed=typed, losses=losses)


def test_the_grid_changes_one_factor_at_a_time_and_keeps_tokens_equal(tmp_path):
    made = read(tmp_path, extra=EXTRA)
    names = [cell.name for cell in made.cells]
    assert names[0] == "adapter1-sharp-corpus-T1"
    assert len(set(names)) == len(names)
    changes = [
        {
            factor
            for factor in grid.FACTORS
            if getattr(cell, factor) != getattr(made.cells[0], factor)
        }
        for cell in made.cells
    ]
    assert changes.count(set()) == 1
    assert changes[-1] == {"student", "teacher"}  # the one that the config names besides
    assert all(len(change) <= 1 for change in changes[:-1])
    assert set().union(*changes[:-1]) == set(grid.FACTORS)
    configs = [made.cell_config(cell, dict.fromkeys(made.losses, 1e-3)) for cell in made.cells]
    assert len({pace.tokens(one) for one in configs}) == 1
    departs = {key for one in configs for key in run_config.differences(configs[0], one)}
    assert departs == {
        *(
            "config.data.context",
            "config.temperature",
            "config.teacher.steps",
            "config.teacher.checkpoint",
        ),
        *(f"config.student.{key}" for key in ("kind", "exit_layer", "depth", "width", "mlp_width")),
    }
    assert {made.tuned_as(cell) for cell in made.cells} == {"adapter1", "decoder1"}


def test_what_is_left_goes_by_what_was_measured(monkeypatch):
    clock = iter([100.0, 200.0, 500.0])
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(clock))
    going = pace.Pace([60.0, 60.0, 60.0, 120.0])
    assert going.left() == 5
    with going.part(whole=False):  # as most of it was done before
        pass
    assert going.left() == 4
    with going.part(whole=True):  # in 300 s, five times as guessed
        pass
    assert going.left() == 15


def test_parts_of_the_grid_and_of_the_losses(tmp_path):
    made = read(tmp_path, losses="tv,kl")
    assert made.losses == ["kl", "tv"]  # in the config's order
    kept = grid.cut(made.cells, ["*-student-*", "adapter2*", "*-T2"], "--cells")
    assert [cell.name for cell in kept] == [
        *("adapter2-sharp-corpus-T1", "adapter1-sharp-student-T1", "adapter1-sharp-corpus-T2"),
    ]
    with pytest.raises(
        ValueError, match=r"--cells: 'adapter9\*' is none of adapter1-sharp-corpus-T1, "
    ):
        grid.cut(made.cells, ["adapter1*", "adapter9*"], "--cells")


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ({"losses": "kl,rlk"}, {}, "--losses: unknown loss `rlk`; did you mean `rkl`"),
        ({"losses": "kl,ce"}, {}, "--losses: ce is none of the config's, kl, rkl"),
        ({"losses": "tv,jsd"}, {}, "`config.losses` must begin with kl"),
        ({"losses": "kl"}, {}, "`config.losses` must begin with kl"),
        (
            {"typed": ["temperature"]},
            {},
            "--config.temperature: each cell has its own; give config.sweep.temperatures",
        ),
        (
            {"typed": ["teacher.steps"]},
            {},
            "--config.teacher.steps: some teachers have their own; give config.sweep.teachers.flat.steps, config.sweep",
        ),
        (
            {"typed": ["student.depth"]},
            {},
            "some students have their own; give config.sweep.students.decoder1.depth",
        ),
        (
            {},
            {"base": "adapter1-sharp-corpus-T3"},
            "`config.sweep.base`: 'adapter1-sharp-corpus-T3' must be STUDENT-",
        ),
        ({}, {"extra": "adapter1-sharp"}, "`config.sweep.extra`"),
        (
            {},
            {"contexts": "corpus,dreams"},
            "`config.sweep.contexts`: 'dreams' is none of corpus, teacher, student",
        ),
        ({}, {"rates": (1e-3, -1.0)}, "`config.sweep.rates` must be finite numbers above 0"),
        (
            {},
            {"temperatures": (1.0, 1.0000001)},
            "which differ within six digits, got (1.0, 1.0000001)",
        ),
        (
            {},
            {"tuning_steps": 20},
            "`config.sweep.tuning_steps` must be above `config.student.optimizer.warmup_steps` = 20",
        ),
        ({}, {"decoded": "nothing"}, "`config.sweep.decoded`: 'nothing' is none of"),
        ({}, {"seeds": 3}, "`config.sweep.seeds` is not a key of a sweep"),
        (
            {},
            {"students": {"adapter1": {"steps": 3}}},
            "`config.sweep.students.adapter1.steps` can't differ between",
        ),
        ({}, {"students": {"a-b": {"depth": 1}}}, "the name 'a-b' must be of letters"),
        ({}, {"students": {"..": {"depth": 1}}}, "the name '..' must be of letters"),
        ({}, {"students": ("adapter1",)}, "`config.sweep.students` must say what it is"),
        ({}, {"students": {"adapter1": 1}}, "`config.sweep.students.adapter1` must say what it is"),
        (
            {},
            {"teachers": {"sharp": {}, "flat": {"steps": 9}}},
            "`config.sweep.teachers.sharp` must say what it is",
        ),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, given, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(tmp_path, **given, **changes)
    assert "\n" not in str(error.value)


def test_a_sweep_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`config.sweep` must say what it is, by base, .*; got 3"):
        plan.read({**config(), "sweep": 3}, tmp_path)


def test_a_folder_keeps_its_config_once_there_is_data(tmp_path):
    first, other, more = (
        read(tmp_path),
        read(tmp_path, tuning_steps=50),
        read(tmp_path, extra=EXTRA),
    )
    teachers = {"blunt": {"steps": 300}}
    names = read(tmp_path, teachers=teachers, base="adapter1-blunt-corpus-T1", decoded="")
    study.initialize_or_resume(names)
    study.initialize_or_resume(other)
    study.initialize_or_resume(first)  # nothing was made for the others
    first.teacher_run("flat").add_facts({DATA_READY: ""})
    study.initialize_or_resume(first)
    study.initialize_or_resume(more)  # cells alone differ
    with pytest.raises(
        ValueError, match=r"another config: config.sweep.base is 'adapter1-sharp-corpus-T1' there"
    ):
        study.check(names)
    message = "another config: config.sweep.tuning_steps is 80 there, 50 here; give this one a folder of its own"
    with pytest.raises(ValueError, match=message):
        study.initialize_or_resume(other)


def test_a_cell_has_its_teacher_and_that_of_its_tuning(tmp_path, monkeypatch):
    made, prepared, run = read(tmp_path, extra=EXTRA), [], []
    monkeypatch.setattr(study.teachers, "prepare", lambda plan, name: prepared.append(name))
    monkeypatch.setattr(study.tuning, "rates", lambda plan, student: prepared.append(student))
    monkeypatch.setattr(study, "_run_cell", lambda plan, cell, *_, **__: run.append(cell))
    flat = grid.cut(made.cells, ["decoder1-flat-*"], "--cells")
    study.run(made, flat)
    assert (prepared, run) == (["sharp", "flat", "decoder1"], list(flat))
    done = made.cell_run(flat[0])
    files.write_text(done.results, "")  # as `experiments.acceptance` would
    assert not study.is_done(made, flat[0])
    files.write_text(done.root / sums.FILE, "")
    study.run(made, flat)
    assert (len(prepared), len(run)) == (3, 1)


def test_runs_of_other_texts_or_another_tokenizer_are_refused(tmp_path, monkeypatch):
    made = read(tmp_path)
    facts = {DATA_READY: "texts", run_data.TOKENIZER: "tokens"}
    monkeypatch.setattr(sweep_runs.teacher, "resolve", lambda config, run, typed: config)
    monkeypatch.setattr(sweep_runs.teacher, "prepare", lambda config, run, data: "a teacher")
    monkeypatch.setattr(sweep_runs.run_data, "prepare", lambda config, run: run.add_facts(facts))
    first, *others = (
        made.teacher_run("sharp"),
        made.teacher_run("flat"),
        made.cell_run(made.cells[0]),
    )
    assert sweep_runs.begin(made, first, made.teacher_config("sharp"))[-1] == "a teacher"
    for run, fact in zip(others, list(facts), strict=True):
        facts = {**first.facts(), fact: "changed"}
        with pytest.raises(
            ValueError, match=f"{run.root}: the {fact} is changed, but .* in {first.root}"
        ):
            sweep_runs.begin(made, run, made.teacher_config("flat"))


def test_learning_rates_are_those_whose_curves_end_highest(tmp_path):
    reached, losses = {}, ["kl", "tv", "rkl"]
    for rate, ends in {
        0.01: {"kl": 0.5, "tv": 0.7, "rkl": None},
        0.001: {"kl": 0.6, "tv": 0.7, "rkl": None},
    }.items():
        run = Workdir(tmp_path / str(rate))
        run.curves.mkdir(parents=True)
        lines = [
            {"step": 4, "loss": {"kl": [1.0]}, "acceptance": {"kl": [0.9]}},
            {"step": 8, "acceptance": {loss: [end] for loss, end in ends.items()}},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.curves / "student.jsonl").write_text(text, encoding="utf-8")
        own = read(tmp_path, losses="kl,tv,rkl").tuning_config("adapter1", rate)
        own["seeds"], own["student"]["steps"], own["student"]["optimizer"]["warmup_steps"] = 1, 8, 0
        run.initialize_or_resume(own)
        ends = tuning.at_end(run, own)
        assert set(ends) == {"kl", "tv"}
        files.write_json(run.root / tuning.FILE, ends)
        reached[rate] = tuning.read(run, losses)
    with pytest.raises(ValueError, match=f"{run.root} was tuned without jsd; delete it"):
        tuning.read(run, [*losses, "jsd"])
    assert tuning.best(reached, losses) == {"kl": 0.001, "tv": 0.001, "rkl": 0.001}
    reached[0.01]["tv"] = 0.71
    assert tuning.best(reached, ["tv"]) == {"tv": 0.01}


STEPS = 36
SMALL = (
    "--config=configs/choose.py:quick",
    *(
        "--config.losses=kl,tv",
        "--config.seeds=2",
        "--config.data.sequence_length=32",
        "--config.dtype=float32",
    ),
    *("--config.teacher.width=32", "--config.teacher.mlp_width=64", "--config.teacher.depth=2"),
    *(
        "--config.teacher.heads=2",
        "--config.student.heads=2",
        "--config.sweep.teachers.sharp.steps=25",
    ),
    *(f"--config.student.steps={STEPS}", "--config.sweep.tuning_steps=12", "--config.log.every=12"),
    *(
        "--config.evaluation.documents=4",
        "--config.evaluation.document_tokens=64",
        "--config.checkpoint.every=12",
    ),
    *("--config.evaluation.prompt_tokens=8", "--config.evaluation.generated_tokens=24"),
    *(
        "--config.evaluation.contexts=corpus,generated",
        "--config.sweep.contexts=corpus",
        "--config.sweep.temperatures=(1.0,)",
    ),
    *("--config.sweep.rates=(1e-2,3e-2)", "--config.evaluation.temperatures=(1.0,)"),
)
FIRST, SECOND = "adapter1-sharp-corpus-T1", "adapter2-sharp-corpus-T1"


def state(folder):
    return {
        name: (path.stat().st_mtime_ns, path.read_bytes())
        for name, path in files.below(folder).items()
    }


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep that was stopped in its second cell: its folder, flags, standard error and curves."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    texts = runs.write_texts(folder.parent / "texts")
    given = (*SMALL, f"--workdir={folder}", f"--config.data.files={texts}/*.txt")
    second = folder / "cells" / SECOND
    process = runs.start("sweep", *given)
    done = stops.stop_when(process, lambda: stops.step_of(second, "student") > 13, signal.SIGTERM)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    return (
        folder,
        given,
        done.stderr,
        (second / "curves" / "student.jsonl").read_text(encoding="utf-8"),
    )


def test_a_killed_sweep_goes_on_within_its_cell(killed):
    folder, given, told, curves = killed
    first, second = (folder / "cells" / name for name in (FIRST, SECOND))
    assert f"cell 1 of 2, {FIRST}: 4 students, about" in told
    assert "the same command goes on from there" in " ".join(told.split())
    assert not (second / sums.FILE).exists()
    written = {name: at for name, (at, _) in state(first).items()}
    assert max(written, key=written.get) == sums.FILE  # by which the cell is known as done
    before = state(first), state(folder / "tuning"), state(folder / "teachers")
    done = runs.run("sweep", *given, "--cells=adapter2*", "--markdown", "--log_format=json")
    assert done.returncode == 0, done.stderr
    assert (state(first), state(folder / "tuning"), state(folder / "teachers")) == before
    whole = (second / "curves" / "student.jsonl").read_text(encoding="utf-8")
    assert whole.startswith(curves)
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [*range(1, STEPS + 1)]
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["cell"] for event in events if event["event"] == "metrics"} == {SECOND}
    assert "This is a part of the study: 1 of 2 cells. " in done.stdout
    assert set(pd.read_csv(folder / report.FILE)["cell"]) == {SECOND}
    whole = runs.succeed("sweep", *given, "--markdown")
    assert "| loss | adapter1-sharp-corpus-T1 | adapter2-sharp-corpus-T1 |" in whole

    frame = pd.read_csv(folder / report.FILE)
    assert tuple(frame.columns) == report.COLUMNS
    assert set(frame["cell"]) == {FIRST, SECOND}
    assert set(frame["loss"]) == {"kl", "tv", UNTRAINED}
    assert set(frame["measure"]) == {"acceptance", "tau"}
    rates = frame.groupby("loss")["learning_rate"].unique()
    reached = {
        rate: files.read_json(folder / "tuning" / f"adapter1-{rate:g}" / "reached.json")
        for rate in (1e-2, 3e-2)
    }
    assert {loss: rates[loss].tolist() for loss in ("kl", "tv")} == {
        loss: [rate] for loss, rate in tuning.best(reached, ["kl", "tv"]).items()
    }
    at = frame[
        frame["cell"].eq(SECOND) & frame["loss"].eq("tv") & frame["temperature"].eq(1)
    ].set_index("measure")
    own = pd.read_csv(second / "results.csv").query(
        "loss == 'tv' and seed == 'all' and context == 'corpus'"
    )
    own = own[own["temperature"].eq(1)].set_index("measure")["value"]
    assert at.loc["acceptance", "value"] == pytest.approx(own["acceptance"], rel=1e-9)
    assert at.loc["acceptance", "difference"] == pytest.approx(own["difference"], rel=1e-9)


def test_what_is_done_is_listed_and_what_is_wrong_refused(killed, tmp_path):
    folder, given, *_ = killed
    before = state(folder / "cells")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    listed, *refused = commands.many(
        "sweep.__main__",
        [
            [*given, "--list", "--cells=adapter1*"],
            [*given, "--config.student.steps=240"],
            [*given, "--config.student.steps=240", "--list"],
            [*given, "--cells="],
            [*given, "--losses=kl"],
            [*given, "--cells=adapter3*"],
            [*given, f"--workdir={tmp_path}"],
            ["--config=configs/smoke.py"],
            [*given, "--profile=1:2"],
            ["--config=configs/choose.py:fast"],
        ],
    )
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith(
        f"{FIRST}: 4 students of 9,216 tokens, done\n1 of 2 cells, about 0 min to go on 2 CPU cores"
    )
    assert state(folder / "cells") == before
    other = (
        f"{folder} holds a sweep of another config: config.student.steps is {STEPS} there, 240 here"
    )
    for done, message in zip(
        refused,
        (
            *(other, other),
            "--cells: '' is none of adapter1",
            "`config.losses` must begin with kl",
            "--cells: 'adapter3*' is none of",
            "is the folder of a run",
            "the config has no `sweep`",
            "--profile: a sweep is many trainings",
            "has the forms full, quick, not 'fast'",
        ),
        strict=True,
    ):
        runs.check_refusal(done, message)
