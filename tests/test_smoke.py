"""The main job as a user runs it, in the smoke size: what it writes, and what runs on it later."""

import collections
import dataclasses
import hashlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiv
from jaxdiv import acceptance, files, models, reductions
from jaxdiv.models import llama
from jaxdiv.runs import metrics
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import (
    run_data,
    sharding,
    students,
    teacher,
    teacher_cache,
    teacher_sources,
)
from tests import commands, runs
from tests.smoke_runs import OF_TEACHER_TEXT, SHORT, check_short, check_whole, read

FILES = (
    *("results.csv", "report.html", "differences.png"),
    *("acceptance_over_temperature.png", "training_curves.png"),
)
OTHERS = ["--config.losses=ce,0.5*kl+0.5*tv", "--config.seed=7"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, texts):
    """A finished run in an interpreter of its own, and what it printed."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    flags = [f"--workdir={folder}", f"--config.data.files={texts}/*.txt"]
    done = runs.end(runs.start("distill", runs.SMOKE, *flags))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def again(finished, texts):
    """Ended commands: the run again, another config in its folder, and that in one of its own."""
    folder, _ = finished
    elsewhere = [f"--config.teacher.checkpoint={folder}", "--config.evaluation.contexts=corpus"]
    arguments = [
        [f"--workdir={folder}"],
        ["--workdir", str(folder), *OTHERS],
        [f"--workdir={folder}-2", *elsewhere, *OTHERS],
    ]
    before = digests(folder)
    data = f"--config.data.files={texts}/*.txt"
    ended = commands.many("distill", [[runs.SMOKE, data, *flags] for flags in arguments])
    return before, *ended


@pytest.fixture(scope="module")
def measured(finished, again, tmp_path_factory):
    """Ended commands of `acceptance`, and the folder of what each wrote."""
    folder, root = finished[0], tmp_path_factory.mktemp("measured")
    shutil.copytree(folder, root / "swapped")
    shutil.copy(root / "swapped/tokens/train.npz", root / "swapped/tokens/test.npz")
    others = ["--temperatures=0,0.7", "--rules=exact_match,greedy_match", "--contexts=generated"]
    flags = {
        "others": [f"--workdir={folder}", f"--output={root}/others", *others],
        "swapped": [f"--workdir={root}/swapped"],
        "pooled": [
            f"--workdir={folder},{folder}-2",
            f"--output={root}/pooled",
            "--contexts=corpus",
        ],
        "twice": [f"--workdir={folder},{folder}-2,{folder}"],
    }
    ended = commands.many("acceptance", list(flags.values()))
    return {name: (done, root / name) for name, done in zip(flags, ended, strict=True)}


def digests(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def accepted(rows, loss):
    """Acceptance and greedy matches of a loss by measure, seed, context and temperature."""
    return {
        (row["measure"], row["seed"], row["context"], float(row["temperature"])): float(
            row["value"]
        )
        for row in rows
        if row["loss"] == loss and row["measure"] in ("acceptance", "greedy_match")
    }


def restored(folder):
    """The spec, data, teacher and folder of a run."""
    run = Workdir(folder)
    spec, data = run.spec(), run_data.TextData.load(run)
    return spec, data, teacher.restore(spec.teacher, run, data.vocab_size), run


def test_students_of_a_cache_are_accepted_as_those_of_online_training(finished, tmp_path):
    online = Workdir(finished[0])
    config = online.config()
    config["teacher"] |= {"cache": str(tmp_path / "cache"), "checkpoint": str(online.root)}
    run = Workdir(tmp_path / "run")
    run.initialize_or_resume(config)
    spec = RunSpec.from_config(config)
    data = run_data.prepare(spec, run)
    students.train(spec, run, data, teacher_cache.prepare(spec, run, data))
    both = [metrics.read_curves(folder.curves, "student", spec.seeds) for folder in (online, run)]
    values = [curves[curves.metric == "acceptance"] for curves in both]
    assert len(values[0]) == 3 * len(spec.losses) * len(spec.seeds)
    np.testing.assert_allclose(values[0].value, values[1].value, atol=1e-3)
    # Students that learned nothing would agree, too.
    first, *_, last = (step.value.to_numpy() for _, step in values[0].groupby("step"))
    assert (last - first).min() > 5e-3


def test_a_run_writes_everything_and_prints_its_table(finished):
    folder, printed = finished
    check_whole(folder)
    assert all((folder / name).stat().st_size > 0 for name in FILES)
    for name in ("ce", "kl", "tv", "untrained", "reference", "floor", "these students only"):
        assert name in printed
    facts = Workdir(folder).facts()
    names = {"python", "jax", "data fingerprint", "tokenizer fingerprint", teacher.QUALITY}
    assert names <= facts.keys()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "one order of the data serve all students" in page
    assert "Kangaroo students after layer 1 of a 2-layer teacher" in page


def test_the_teacher_is_measured_on_the_first_windows_and_once(finished, tmp_path, monkeypatch):
    spec, data, _, run = restored(finished[0])
    whole, first = teacher.quality_windows(data), teacher.quality_windows(data, 1000)
    count, lengths = len(first.weights), whole.weights.sum(1)
    assert lengths[:count].sum() <= 1000 < lengths[: count + 1].sum()
    np.testing.assert_array_equal(first.labels, whole.labels[:count])
    assert run.facts()[teacher.QUALITY_TOKENS] == lengths.sum()
    # A run of the same documents that takes the teacher over takes its figure, too.
    other = Workdir(tmp_path)
    lent = dataclasses.replace(spec.teacher, checkpoint=str(run.root))
    lent = dataclasses.replace(spec, teacher=lent)
    names = (teacher.QUALITY, teacher.QUALITY_TOKENS)
    other.add_facts({k: v for k, v in run.facts().items() if k not in names})
    measured = teacher._measured_before(lent, other)
    assert measured == {name: run.facts()[name] for name in names}
    half = dataclasses.replace(lent, teacher=dataclasses.replace(lent.teacher, dtype="bfloat16"))
    assert teacher._measured_before(half, other) is None
    # What is measured of a pretrained teacher serves the user's other runs of it.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other.add_facts({teacher_sources.SOURCE_FINGERPRINT: "0123"})
    teacher._remember(half, other, {teacher.QUALITY: 1.5})
    assert teacher._measured_before(half, other) == {teacher.QUALITY: 1.5}
    short = dataclasses.replace(half, data=dataclasses.replace(half.data, sequence_length=7))
    assert teacher._measured_before(short, other) is None
    (path,) = (tmp_path / "cache").rglob("*.json")
    path.write_text("{")
    assert teacher._measured_before(half, other) is None
    # Another choice of tokens is another figure.
    asks = dataclasses.replace(lent, teacher=dataclasses.replace(lent.teacher, quality_tokens=9))
    answers = dataclasses.replace(lent, data=dataclasses.replace(lent.data, loss_on="assistant"))
    assert teacher._measured_before(asks, other) is None
    assert teacher._measured_before(answers, other) is None


def test_a_second_run_measures_the_same_again(finished, again):
    folder, printed = finished
    before, done, *_ = again
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
    assert digests(folder) == before


def test_cross_entropy_and_kl_give_the_same_students_from_disk(finished):
    ce, kl, tv = (accepted(read(finished[0]), loss) for loss in ("ce", "kl", "tv"))
    assert ce.keys() == kl.keys()
    for key, value in ce.items():
        atol = 1e-3 if key[0] == "greedy_match" else 1e-6
        np.testing.assert_allclose(value, kl[key], rtol=0, atol=atol)
    assert max(abs(value - tv[key]) for key, value in ce.items()) > 1e-4


def test_cross_entropy_and_kl_have_one_gradient_on_a_restored_student(finished):
    spec, data, target, run = restored(finished[0])
    batch = run_data.validation_batch(spec.student_stage, data, sharding.single_device_mesh())
    student = students.restore_one(str(run.root), loss="ce", seed=1)
    forward = jax.jit(students.teacher_forward(student, target))
    output = forward(target.params, batch["inputs"])

    def gradient(loss):
        def mean(params, output):
            logits = student.with_params(params)(batch["inputs"], output)
            return reductions.token_mean(jaxdiv.get(loss)(logits, output.logits), batch["weights"])

        return jax.jit(jax.grad(mean))(student.params, output)

    def distance(loss):
        gap = optax.tree.norm(jax.tree.map(jnp.subtract, ce, gradient(loss)))
        return float(gap / optax.tree.norm(ce))

    ce = gradient("ce")
    assert float(optax.tree.norm(ce)) > 1e-3
    assert distance("kl") < 1e-6
    assert distance("tv") > 0.1


def test_a_student_restored_alone_is_the_one_that_was_measured(finished):
    spec, data, target, run = restored(finished[0])
    tokens, length = data.splits["test"], spec.data.sequence_length
    student = students.restore_one(str(run.root), loss="tv", seed=1)

    @jax.jit
    def chance(inputs):
        output = students.teacher_forward(student, target)(target.params, inputs)
        return acceptance.sampling(student(inputs, output), output.logits)

    chances, count = 0.0, 0
    for k in range(min(tokens.documents, spec.evaluation.documents)):
        ids = tokens.ids[tokens.offsets[k] : tokens.offsets[k + 1]]
        ids = ids[: spec.evaluation.document_tokens]
        for start in range(0, len(ids) - 1, length):
            inputs = ids[start : min(start + length, len(ids) - 1)]
            padded = np.pad(inputs, (0, length - len(inputs)))[None]
            chances += float(chance(padded)[0, : len(inputs)].sum())
            count += len(inputs)
    value = accepted(read(run.root), "tv")["acceptance", "1", "corpus", 1.0]
    np.testing.assert_allclose(value, chances / count, rtol=1e-5)


def test_runs_are_measured_again_by_other_rules_temperatures_and_contexts(measured):
    done, output = measured["others"]
    assert done.returncode == 0, done.stderr
    rows = [row for row in read(output) if row["measure"] not in OF_TEACHER_TEXT]
    assert {row["context"] for row in rows} == {"generated"}
    assert {row["measure"] for row in rows} == {
        "acceptance", "acceptance_exact_match", "greedy_match", "difference",
    }  # fmt: skip
    values = collections.defaultdict(dict)
    for row in rows:
        if (row["loss"], row["seed"]) == ("tv", "0"):
            values[row["measure"]][float(row["temperature"])] = float(row["value"])
    sampling, exact = values["acceptance"], values["acceptance_exact_match"]
    assert set(sampling) == {0.0, 0.7}
    assert sampling[0.0] == exact[0.0] == values["greedy_match"][0.0]
    assert exact[0.7] < sampling[0.7]


def test_swapped_tokens_are_noticed(measured):
    done, _ = measured["swapped"]
    runs.check_refusal(done, "the test tokens' fingerprint is", "as the run began with")


def test_other_losses_and_seeds_on_the_same_teacher_and_both_runs_pooled(finished, again, measured):
    folder, (*_, refused, done) = finished[0], again
    runs.check_refusal(refused, "config.losses is 'ce,kl,tv' there, 'ce,0.5*kl+0.5*tv' here")
    command = refused.stderr.split("Give it a folder of its own: ")[1]
    assert f"--config.teacher.checkpoint={folder}" in command
    assert f"--workdir={folder}-2" in command
    assert f" {folder} " not in command
    assert done.returncode == 0, done.stderr
    check_same_teacher(folder, f"{folder}-2")
    pooled, output = measured["pooled"]
    assert pooled.returncode == 0, pooled.stderr
    runs.check_refusal(measured["twice"][0], f"--workdir names {folder} twice")
    rows = [row for row in read(output) if row["loss"] == "ce" and row["measure"] == "acceptance"]
    assert {row["seed"] for row in rows} == {"0", "1", "7", "8", "all"}
    text = (output / "report.html").read_text(encoding="utf-8")
    assert "2 runs, pooled; the first: Kangaroo students" in text
    page = Workdir(f"{folder}-2").report
    before = page.read_bytes()
    page.unlink()
    runs.succeed("report", f"--workdir={folder}-2")
    assert page.read_bytes() == before


def check_same_teacher(*folders):
    left, right = (restored(folder)[2].params for folder in folders)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_teacher_goes_out_and_comes_back_and_teaches(finished, texts, tmp_path, tmp_path_factory):
    folder, run = finished[0], Workdir(tmp_path / "run")
    images = commands.of_images(tmp_path_factory.mktemp("images"))
    refusals = {
        "--loss=klx": "no students of loss 'klx'; it has ce, kl, tv",
        "--seed=9": "no seed 9; it has 0, 1",
        f"--output={texts}": f"{texts} is there already and not an empty folder",
        "--teacher": "--teacher exports the teacher, which has no --loss",
    }
    student, refused = [f"--workdir={folder}", "--loss=kl", "--seed=1"], f"--output={tmp_path}/no"
    done = commands.many(
        "export",
        [
            [f"--workdir={folder}", "--teacher", f"--output={tmp_path}/teacher"],
            [*student, f"--output={tmp_path}/adapter"],
            [f"--workdir={images}", refused],
            *([*student, refused, flag] for flag in refusals),
        ],
    )
    assert done[0].returncode == done[1].returncode == 0, done[0].stderr + done[1].stderr
    for refusal, message in zip(done[2:], [commands.OF_TEXT, *refusals.values()], strict=True):
        runs.check_refusal(refusal, message)
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "adapter"}
    assert files.read_json(tmp_path / "adapter" / "config.json")["exit_layer"] == 1
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "Kangaroo adapter after layer 1" in card

    decoder = ["--config.student.kind=decoder", f"--config.data.files={texts}/*.txt"]
    flags = [*SHORT, *decoder, f"--workdir={run.root}"]
    runs.succeed("teacher", *flags, f"--from_hf={tmp_path}/teacher")
    (tmp_path / "teacher").rename(tmp_path / "moved")
    check_came_back(run, Workdir(folder), source=tmp_path / "teacher")
    shutil.copytree(run.root, tmp_path / "teacher_alone")
    runs.succeed("distill", *flags)
    check_short(run.root)
    untaught, done = commands.many(
        "export",
        [
            [f"--workdir={path}", "--loss=tv", "--seed=0", f"--output={tmp_path}/draft"]
            for path in (tmp_path / "teacher_alone", run.root)
        ],
    )
    runs.check_refusal(untaught, f"no checkpoint in {tmp_path}/teacher_alone/students; train first")
    assert done.returncode == 0, done.stderr
    check_draft(tmp_path / "draft", run.root)


def check_came_back(run, exported, *, source):
    """Checks that the teacher of `run`, by way of the Llama folder `source`, was exported."""
    check_same_teacher(run.root, exported.root)
    facts = run.facts()
    assert facts["tokenizer fingerprint"] == exported.facts()["tokenizer fingerprint"]
    assert facts["teacher taken from"] == run.config()["teacher"]["checkpoint"] == str(source)
    assert facts[teacher.QUALITY] > 0
    assert 0 < facts[teacher.QUALITY_TOKENS] <= 2**14
    assert len(facts["fingerprint of the teacher's files"]) == 16


def check_draft(folder, run):
    """Checks that `folder` holds the student that was measured, with its card."""
    tokens, output = np.arange(24)[None], models.TeacherOutput(None, None, None, vocab_size=0)
    student = students.restore_one(str(run), loss="tv", seed=0)
    np.testing.assert_array_equal(llama.read(folder)(tokens).logits, student(tokens, output))
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    key = ("tv", "0", "acceptance")
    rows = [row for row in read(run) if (row["loss"], row["seed"], row["measure"]) == key]
    assert len(rows) == 2
    for row in rows:
        value, low, high = (f"{float(row[name]):.4f}" for name in ("value", "low", "high"))
        cells = f"`acceptance` | {float(row['temperature']):g} |  | {value} | {low} to {high}"
        assert f"| generated | {cells} | {row['n']} |" in card
