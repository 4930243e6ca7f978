"""The sweep of losses: its cells, its folder, and one small sweep that is killed."""

import json
import re
import shlex
import signal

import numpy as np
import pandas as pd
import pytest

from configs import choose
from experiments.sweep import (
    cells,
    comparisons,
    plan,
    report,
    runs,
    stored_sums,
    study,
    time_estimate,
)
from jaxdiv import files
from jaxdiv.runs import config as run_config
from jaxdiv.runs.workdir import DATA_READY, Workdir
from jaxdiv.schema import UNTRAINED
from jaxdiv.training import run_data
from tests import commands, stops
from tests import runs as processes

EXTRA = "decoder1-flat-corpus-T1"


def read(folder, losses=None, typed=(), **changes):
    config = choose.get_config().to_dict()
    config["sweep"] |= changes
    return plan.read(config, folder, typed=typed, losses=losses)


def test_cells_change_one_factor_at_a_time_and_keep_tokens_equal(tmp_path):
    sweep = read(tmp_path, extra=EXTRA)
    names, base = [cell.name for cell in sweep.cells], sweep.cells[0]
    assert names[0] == "adapter1-sharp-corpus-T1"
    assert len(set(names)) == len(names)
    changes = [
        {factor for factor in cells.FACTORS if getattr(cell, factor) != getattr(base, factor)}
        for cell in sweep.cells
    ]
    assert changes.count(set()) == 1
    assert changes[-1] == {"student", "teacher"}  # the one that the config names besides
    assert all(len(change) <= 1 for change in changes[:-1])
    assert set().union(*changes[:-1]) == set(cells.FACTORS)
    planned = [sweep.cell_run(cell) for cell in sweep.cells]
    assert len({time_estimate.training_tokens(run.spec()) for run in planned}) == 1
    configs = [run.config for run in planned]
    differ = {key for config in configs for key in run_config.differences(configs[0], config)}
    keys = "data.context temperature teacher.steps teacher.checkpoint student.kind "
    keys += "student.exit_layer student.depth student.width student.mlp_width"
    assert differ == {f"config.{key}" for key in keys.split()}
    assert {sweep.tuned_student(cell) for cell in sweep.cells} == {"adapter1", "decoder1"}


def test_remaining_time_goes_by_what_was_measured():
    assert time_estimate.minutes_left([60.0, 60.0, 60.0, 120.0], []) == 5
    # One cell took 300 s, five times its estimate.
    assert time_estimate.minutes_left([60.0, 120.0], [(60.0, 300.0)]) == 15


def test_selected_cells_and_losses(tmp_path):
    sweep = read(tmp_path, losses="tv,kl")
    assert sweep.losses == ["kl", "tv"]  # in the config's order
    selected = cells.select(sweep.cells, ["*-student-*", "adapter2*", "*-T2"], "--cells")
    names = ["adapter2-sharp-corpus-T1", "adapter1-sharp-student-T1", "adapter1-sharp-corpus-T2"]
    assert [cell.name for cell in selected] == names
    message = r"--cells: 'adapter9\*' is none of adapter1-sharp-corpus-T1, "
    with pytest.raises(ValueError, match=message):
        cells.select(sweep.cells, ["adapter1*", "adapter9*"], "--cells")


REFUSED_ARGUMENTS = [
    ({"losses": "kl,rlk"}, "--losses: unknown loss `rlk`; did you mean `rkl`"),
    ({"losses": "kl,ce"}, "--losses: ce is none of the config's, kl, rkl"),
    ({"losses": "tv,jsd"}, "`config.losses` must begin with kl"),
    ({"losses": "kl"}, "`config.losses` must begin with kl"),
    ({"typed": ["temperature"]}, "each cell has its own; give config.sweep.temperatures"),
    ({"typed": ["teacher.steps"]}, "some teachers have their own; give config.sweep.teachers.flat"),
    ({"typed": ["student.depth"]}, "have their own; give config.sweep.students.decoder1.depth"),
    ({"base": "adapter1-sharp-corpus-T3"}, "-T3' must be STUDENT-TEACHER-CONTEXT-TEMPERATURE, "),
    ({"extra": "adapter1-sharp"}, "`config.sweep.extra`: 'adapter1-sharp' must be STUDENT-"),
    ({"contexts": "corpus,dreams"}, "contexts`: 'dreams' is none of corpus, teacher, student"),
    ({"rates": (1e-3, -1.0)}, "`config.sweep.rates` must be finite numbers above 0"),
    ({"temperatures": (1.0, 1.0000001)}, "which differ within six digits, got (1.0, 1.0000001)"),
    ({"tuning_steps": 20}, "must be above `config.student.optimizer.warmup_steps` = 20"),
    ({"decoded": "nothing"}, "`config.sweep.decoded`: 'nothing' is none of"),
    ({"seeds": 3}, "`config.sweep.seeds` is not a key of a sweep"),
    ({"students": {"a": {"steps": 3}}}, "`config.sweep.students.a.steps` can't differ between"),
    ({"students": {"a-b": {"depth": 1}}}, "the name 'a-b' must be of letters"),
    ({"students": {"..": {"depth": 1}}}, "the name '..' must be of letters"),
    ({"students": ("adapter1",)}, "students` must say what it is, by names of your own; got ('ad"),
    ({"students": {"a": 1}}, "`config.sweep.students.a` must say what it is, by kind, exit_layer,"),
    ({"teachers": {"sharp": {}}}, "`config.sweep.teachers.sharp` must say what it is"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED_ARGUMENTS)
def test_wrong_sweeps_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_a_sweep_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`config.sweep` must say what it is, by base, .*; got 3"):
        plan.read({**choose.get_config().to_dict(), "sweep": 3}, tmp_path)


def test_a_folder_keeps_its_config_once_there_is_data(tmp_path):
    first, other, more = (
        read(tmp_path, **changes) for changes in ({}, {"tuning_steps": 50}, {"extra": EXTRA})
    )
    teachers = {"blunt": {"steps": 300}}
    renamed = read(tmp_path, teachers=teachers, base="adapter1-blunt-corpus-T1", decoded="")
    for sweep in (renamed, other, first):  # no data are ready for any of them
        study.initialize_or_resume(sweep)
    first.workdir("teachers", "flat").add_facts({DATA_READY: ""})
    study.initialize_or_resume(first)
    study.initialize_or_resume(more)  # only its cells differ
    message = r"another config: config.sweep.base is 'adapter1-sharp-corpus-T1' there"
    with pytest.raises(ValueError, match=message):
        study.check(renamed)
    message = "config.sweep.tuning_steps is 80 there, 50 here; give this one a folder of its own"
    with pytest.raises(ValueError, match=f"another config: {message}"):
        study.initialize_or_resume(other)


def test_a_cell_has_its_teacher_and_that_of_its_tuning(tmp_path, monkeypatch):
    sweep, prepared, trained = read(tmp_path, extra=EXTRA), [], []
    monkeypatch.setattr(study.runs, "prepare_teacher", lambda name, *_: prepared.append(name))
    monkeypatch.setattr(study.runs, "tune", lambda name, *_: prepared.append(name))
    monkeypatch.setattr(study, "_run_cell", lambda run, *_, **__: trained.append(run.workdir.root))
    flat = cells.select(sweep.cells, ["decoder1-flat-*"], "--cells")
    folder = sweep.workdir("cells", flat[0].name)
    study.run(sweep, flat)
    assert (prepared, trained) == (["sharp", "flat", "decoder1"], [folder.root])
    files.write_text(folder.results, "")  # as `experiments.acceptance` would
    assert not study.is_done(sweep, flat[0])
    files.write_text(folder.root / stored_sums.FILE, "")
    study.run(sweep, flat)
    assert (len(prepared), len(trained)) == (3, 1)


def test_runs_of_other_texts_or_another_tokenizer_are_refused(tmp_path, monkeypatch):
    sweep = read(tmp_path)
    facts = {DATA_READY: "texts", run_data.TOKENIZER: "tokens"}
    monkeypatch.setattr(runs.teacher_sources, "resolve", lambda config, run, typed: config)
    monkeypatch.setattr(runs.teacher, "prepare", lambda spec, run, data, _: "a teacher")
    monkeypatch.setattr(runs.run_data, "prepare", lambda config, run: run.add_facts(facts))
    run = sweep.teacher_run("sharp")
    first = run.first
    assert runs.begin(run)[-1] == "a teacher"
    others = (sweep.teacher_run("flat"), sweep.cell_run(sweep.cells[0]))
    for other, fact in zip(others, list(facts), strict=True):
        facts = {**first.facts(), fact: "changed"}
        message = f"{other.workdir.root}: the {fact} is changed, but .* in {first.root}"
        with pytest.raises(ValueError, match=message):
            runs.begin(other)


def test_learning_rates_are_those_whose_curves_end_highest(tmp_path):
    acceptance, losses = {}, ["kl", "tv", "rkl"]
    for rate, kl in ((0.01, 0.5), (0.001, 0.6)):
        workdir = Workdir(tmp_path / str(rate))
        workdir.curves.mkdir(parents=True)
        lines = [
            {"step": 4, "loss": {"kl": [1.0]}, "acceptance": {"kl": [0.9]}},
            {"step": 8, "acceptance": {"kl": [kl], "tv": [0.7], "rkl": [None]}},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (workdir.curves / "student.jsonl").write_text(text, encoding="utf-8")
        config = read(tmp_path, losses="kl,tv,rkl").tuning_runs("adapter1")[0.01].config
        config["student"]["steps"], config["student"]["optimizer"]["warmup_steps"] = 8, 0
        workdir.initialize_or_resume(config)
        ends = runs.final_acceptance(workdir)
        assert set(ends) == {"kl", "tv"}
        files.write_json(workdir.root / runs.TUNED, ends)
        acceptance[rate] = runs.read_tuned(workdir, losses)
    with pytest.raises(ValueError, match=f"{workdir.root} was tuned without jsd; delete it"):
        runs.read_tuned(workdir, [*losses, "jsd"])
    assert runs.best_rates(acceptance) == {"kl": 0.001, "tv": 0.001, "rkl": 0.001}
    acceptance[0.01]["tv"] = 0.71
    assert runs.best_rates(acceptance)["tv"] == 0.01


STEPS, RATES = 36, (1e-2, 3e-2)
SMALL = shlex.split(f"""
--config=configs/choose.py:quick
--config.losses=kl,tv --config.seeds=2 --config.dtype=float32
--config.data.sequence_length=32
--config.teacher.width=32 --config.teacher.mlp_width=64 --config.teacher.depth=2
--config.teacher.heads=2 --config.student.heads=2
--config.student.steps={STEPS} --config.log.every=12 --config.checkpoint.every=12
--config.evaluation.documents=4 --config.evaluation.document_tokens=64
--config.evaluation.prompt_tokens=8 --config.evaluation.generated_tokens=24
--config.evaluation.contexts=corpus,generated --config.evaluation.temperatures=(1.0,)
--config.sweep.teachers.sharp.steps=25 --config.sweep.contexts=corpus
--config.sweep.temperatures=(1.0,) "--config.sweep.rates={RATES}"
--config.sweep.tuning_steps=12
""")
FIRST, SECOND = "adapter1-sharp-corpus-T1", "adapter2-sharp-corpus-T1"


def state(folder):
    return {
        name: (path.stat().st_mtime_ns, path.read_bytes())
        for name, path in files.below(folder).items()
    }


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Returns the folder, flags, standard error and curves of a sweep that was stopped in its
    second cell."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    texts = processes.write_texts(folder.parent / "texts")
    flags = (*SMALL, f"--workdir={folder}", f"--config.data.files={texts}/*.txt")
    second = folder / "cells" / SECOND
    process = processes.start("sweep", *flags)
    ended = stops.stop_when(process, lambda: stops.step_of(second, "student") > 13, signal.SIGTERM)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    curves = (second / "curves" / "student.jsonl").read_text(encoding="utf-8")
    return folder, flags, ended.stderr, curves


def test_killed_sweep_resumes_within_its_cell(killed):
    folder, flags, stderr, curves = killed
    first, second = (folder / "cells" / name for name in (FIRST, SECOND))
    assert f"cell 1 of 2, {FIRST}: 4 students, about" in stderr
    assert "the same command goes on from there" in " ".join(stderr.split())
    assert not (second / stored_sums.FILE).exists()
    written = {name: at for name, (at, _) in state(first).items()}
    assert max(written, key=written.get) == stored_sums.FILE  # marks the cell as done
    before = state(first), state(folder / "tuning"), state(folder / "teachers")
    resumed = processes.run("sweep", *flags, "--cells=adapter2*", "--markdown", "--log_format=json")
    assert resumed.returncode == 0, resumed.stderr
    assert (state(first), state(folder / "tuning"), state(folder / "teachers")) == before
    whole = (second / "curves" / "student.jsonl").read_text(encoding="utf-8")
    assert whole.startswith(curves)
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [*range(1, STEPS + 1)]
    events = [json.loads(line) for line in resumed.stderr.splitlines()]
    assert {event["cell"] for event in events if event["event"] == "metrics"} == {SECOND}
    assert "This is a part of the study: 1 of 2 cells. " in resumed.stdout
    assert set(pd.read_csv(folder / report.FILE)["cell"]) == {SECOND}


def test_a_finished_sweep_is_reported_listed_and_kept_from_other_configs(killed, tmp_path):
    folder, flags, *_ = killed
    files.write_text(tmp_path / "config.json", "{}")
    before = state(folder / "cells")
    other = f"{folder} holds a sweep of another config: config.student.steps is {STEPS} there, 240"
    refusals = {
        (*flags, "--config.student.steps=240"): other,
        (*flags, "--config.student.steps=240", "--list"): other,
        (*flags, "--cells="): "--cells: '' is none of adapter1",
        (*flags, "--losses=kl"): "`config.losses` must begin with kl",
        (*flags, f"--workdir={tmp_path}"): "is the folder of a run",
        ("--config=configs/smoke.py",): "the config has no `sweep`",
        (*flags, "--profile=1:2"): "--profile: a sweep is many trainings",
        ("--config=configs/choose.py:fast",): "has the forms full, quick, not 'fast'",
    }
    arguments = [(*flags, "--markdown"), (*flags, "--list", "--cells=adapter1*"), *refusals]
    whole, listed, *refused = commands.many("sweep.__main__", [*map(list, arguments)])
    assert state(folder / "cells") == before
    for ended, message in zip(refused, refusals.values(), strict=True):
        processes.check_refusal(ended, message)
    assert listed.returncode == whole.returncode == 0, listed.stderr + whole.stderr
    assert listed.stdout.startswith(
        f"{FIRST}: 4 students of 9,216 tokens, done\n1 of 2 cells, about 0 min to go on 2 CPU cores"
    )
    assert "| loss | adapter1-sharp-corpus-T1 | adapter2-sharp-corpus-T1 |" in whole.stdout
    frame = pd.read_csv(folder / report.FILE)
    assert tuple(frame.columns) == comparisons.COLUMNS
    assert set(frame["cell"]) == {FIRST, SECOND}
    assert set(frame["measure"]) == {"acceptance", "tau"}
    acceptance = {
        rate: files.read_json(folder / "tuning" / f"adapter1-{rate:g}" / runs.TUNED)
        for rate in RATES
    }
    rates = frame.groupby("loss", sort=False)["learning_rate"].unique().map(list).to_dict()
    assert np.isnan(rates.pop(UNTRAINED)).all()
    assert rates == {loss: [rate] for loss, rate in runs.best_rates(acceptance).items()}
    at_1 = frame["cell"].eq(SECOND) & frame["loss"].eq("tv") & frame["temperature"].eq(1)
    row = frame[at_1].set_index("measure").loc["acceptance"]
    query = "loss == 'tv' and seed == 'all' and context == 'corpus' and temperature == 1"
    cell = pd.read_csv(folder / "cells" / SECOND / "results.csv").query(query)
    values = cell.set_index("measure")["value"]
    assert row["value"] == pytest.approx(values["acceptance"], rel=1e-9)
    assert row["difference"] == pytest.approx(values["difference"], rel=1e-9)
