"""The main job as a user runs it, in the smoke size: what it writes, and what runs on it
afterwards."""

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
from jaxdiv.runs import sharding
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, students, teacher
from tests import commands, runs
from tests.smoke_runs import OF_OWN_TEXT, SHORT, check_short, check_whole, read

WRITTEN = (
    "results.csv",
    "report.html",
    "differences.png",
    "acceptance_over_temperature.png",
    "training_curves.png",
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return runs.write_texts(tmp_path_factory.mktemp("data") / "texts")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and what it printed."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    return folder, runs.succeed("distill", runs.SMOKE, f"--workdir={folder}")


def test_a_run_writes_everything_and_prints_its_table(finished):
    folder, printed = finished
    check_whole(folder)
    assert all((folder / name).stat().st_size > 0 for name in WRITTEN)
    for name in ("ce", "kl", "tv", "untrained", "reference", "floor", "these students only"):
        assert name in printed
    facts = Workdir(folder).facts()
    assert {
        "python",
        "jax",
        "data fingerprint",
        "tokenizer fingerprint",
        teacher.QUALITY,
    } <= facts.keys()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "one order of the data serve all students" in page
    assert "Kangaroo students after layer 1 of a 2-layer teacher" in page


def test_a_second_run_measures_the_same_again(finished):
    folder, printed = finished
    before = {name: _digest(folder / name) for name in WRITTEN}
    assert runs.succeed("distill", runs.SMOKE, f"--workdir={folder}") == printed
    assert {name: _digest(folder / name) for name in WRITTEN} == before


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_cross_entropy_and_kl_give_the_same_students_from_disk(finished):
    rows = read(finished[0])
    value = {loss: _values(rows, loss) for loss in ("ce", "kl", "tv")}
    assert value["ce"].keys() == value["kl"].keys()
    for (measure, *_), pair in _together(value["ce"], value["kl"]).items():
        np.testing.assert_allclose(*pair, rtol=0, atol=1e-3 if measure == "greedy_match" else 1e-6)
    assert max(abs(a - b) for a, b in _together(value["ce"], value["tv"]).values()) > 1e-4


def _values(rows, loss):
    keys = ("measure", "seed", "context", "temperature")
    return {
        tuple(row[key] for key in keys): float(row["value"])
        for row in rows
        if row["loss"] == loss and row["measure"] in ("acceptance", "greedy_match")
    }


def _together(a, b):
    return {key: (a[key], b[key]) for key in a}


def test_cross_entropy_and_kl_have_one_gradient_on_a_restored_student(finished):
    run = Workdir(finished[0])
    spec, data = run.spec(), run_data.TextData.load(run)
    guide = teacher.restore(spec.teacher, run, data.tokenizer.vocab_size)
    batch = run_data.validation_batch(spec.student_stage, data, sharding.single_device_mesh())
    shared = jax.jit(students.teacher_forward(spec.student, guide))(guide.params, batch["inputs"])
    student = students.restore_one(str(run.root), loss="ce", seed=1)

    def gradient(text):
        def mean(params, shared):
            values = jaxdiv.get(text)(
                student.with_params(params)(batch["inputs"], shared), shared.logits
            )
            return reductions.token_mean(values, batch["weights"])

        return jax.jit(jax.grad(mean))(student.params, shared)

    ce, kl = gradient("ce"), gradient("kl")
    assert float(optax.tree.norm(ce)) > 1e-3
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, ce, kl)) / optax.tree.norm(ce)) < 1e-6
    assert (
        float(optax.tree.norm(jax.tree.map(jnp.subtract, ce, gradient("tv"))) / optax.tree.norm(ce))
        > 0.1
    )


def test_a_student_restored_alone_is_the_one_that_was_measured(finished):
    run = Workdir(finished[0])
    spec, data = run.spec(), run_data.TextData.load(run)
    guide = teacher.restore(spec.teacher, run, data.tokenizer.vocab_size)
    tokens, length = data.splits["test"], spec.data.sequence_length
    chances, counts = 0.0, 0
    student = students.restore_one(str(run.root), loss="tv", seed=1)

    @jax.jit
    def chance(inputs):
        shared = students.teacher_forward(spec.student, guide)(guide.params, inputs)
        return acceptance.sampling(student(inputs, shared), shared.logits)

    for k in range(min(tokens.documents, spec.evaluation.documents)):
        ids = tokens.ids[tokens.offsets[k] : tokens.offsets[k + 1]][
            : spec.evaluation.document_tokens
        ]
        for start in range(0, len(ids) - 1, length):
            inputs = ids[start : min(start + length, len(ids) - 1)]
            padded = np.pad(inputs, (0, length - len(inputs)))[None]
            chances += float(chance(padded)[0, : len(inputs)].sum())
            counts += len(inputs)
    measured = {
        (k[0], k[1], k[2], float(k[3])): v for k, v in _values(read(run.root), "tv").items()
    }
    np.testing.assert_allclose(
        measured["acceptance", "1", "corpus", 1.0], chances / counts, rtol=1e-5
    )


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """Ends of measuring the run by other rules and of one with other test tokens; the folder of
    what was measured."""
    output, swapped = (
        tmp_path_factory.mktemp("measured"),
        tmp_path_factory.mktemp("swapped") / "run",
    )
    shutil.copytree(finished[0], swapped)
    shutil.copy(swapped / "tokens" / "train.npz", swapped / "tokens" / "test.npz")
    how = ["--temperatures=0,0.7", "--rules=exact_match,greedy_match", "--contexts=generated"]
    asked = [[f"--workdir={finished[0]}", f"--output={output}", *how], [f"--workdir={swapped}"]]
    return *commands.many("acceptance", asked), output


def test_runs_are_measured_again_by_other_rules_temperatures_and_contexts(measured):
    done, _, output = measured
    assert done.returncode == 0, done.stderr
    rows = [row for row in read(output) if row["measure"] not in OF_OWN_TEXT]
    assert {row["context"] for row in rows} == {"generated"}
    assert {row["measure"] for row in rows} == {
        "acceptance", "acceptance_exact_match", "greedy_match", "difference",
    }  # fmt: skip
    at = {
        (r["measure"], float(r["temperature"])): float(r["value"])
        for r in rows
        if (r["loss"], r["seed"]) == ("tv", "0")
    }
    assert {temperature for measure, temperature in at if measure == "acceptance"} == {0.0, 0.7}
    assert at["acceptance", 0.0] == at["acceptance_exact_match", 0.0] == at["greedy_match", 0.0]
    assert at["acceptance_exact_match", 0.7] < at["acceptance", 0.7]


def test_other_losses_and_seeds_on_the_same_teacher_and_both_runs_pooled(finished, tmp_path):
    folder = finished[0]
    other = ["--config.losses=ce,0.5*kl+0.5*tv", "--config.seed=7"]
    lent = [f"--config.teacher.checkpoint={folder}", "--config.evaluation.contexts=corpus"]
    here, there = ["--workdir", str(folder)], [f"--workdir={folder}-2", *lent]
    refused, done = commands.many(
        "distill", [[runs.SMOKE, *where, *other] for where in (here, there)]
    )
    runs.check_refusal(refused, "config.losses is 'ce,kl,tv' there, 'ce,0.5*kl+0.5*tv' here")
    command = refused.stderr.split("Give it a folder of its own: ")[1]
    assert f"--config.teacher.checkpoint={folder}" in command
    assert f"--workdir={folder}-2" in command
    assert f" {folder} " not in command
    assert done.returncode == 0, done.stderr
    mine, theirs = (
        teacher.restore(Workdir(p).spec().teacher, Workdir(p), _size(p)).params
        for p in (folder, f"{folder}-2")
    )
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True)
    )
    pooling = [f"--workdir={folder},{folder}-2", f"--output={tmp_path}", "--contexts=corpus"]
    asked = [pooling, [f"--workdir={folder},{folder}-2,{folder}"]]
    pooled, refused = commands.many("acceptance", asked)
    assert pooled.returncode == 0, pooled.stderr
    runs.check_refusal(refused, f"--workdir names {folder} twice")
    rows = [row for row in read(tmp_path) if row["loss"] == "ce" and row["measure"] == "acceptance"]
    assert {row["seed"] for row in rows} == {"0", "1", "7", "8", "all"}
    assert "2 runs, pooled; the first: Kangaroo students" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    page = Workdir(f"{folder}-2").report
    before = page.read_bytes()
    page.unlink()
    runs.succeed("report", f"--workdir={folder}-2")
    assert page.read_bytes() == before


def _size(folder):
    return run_data.TextData.load(Workdir(folder)).tokenizer.vocab_size


def test_a_teacher_goes_out_and_comes_back_and_teaches(finished, texts, tmp_path, tmp_path_factory):
    folder, run = finished[0], tmp_path / "run"
    refusals = {
        "--loss=klx": ["no students of loss 'klx'; it has ce, kl, tv"],
        "--seed=9": ["no seed 9; it has 0, 1"],
        f"--output={texts}": [f"{texts} is there already and not an empty folder"],
        "--teacher": ["--teacher exports the teacher, which has no --loss"],
    }
    fixed = [f"--workdir={folder}", "--loss=kl", "--seed=1"]
    given = [
        [f"--workdir={folder}", "--teacher", f"--output={tmp_path}/teacher"],
        [*fixed, f"--output={tmp_path}/adapter"],
        [
            f"--workdir={commands.of_images(tmp_path_factory.mktemp('images'))}",
            f"--output={tmp_path}/refused",
        ],
        *([*fixed, f"--output={tmp_path}/refused", f] for f in refusals),
    ]
    of_teacher, of_student, of_images, *refused = commands.many("export", given)
    runs.check_refusal(of_images, commands.OF_TEXT)
    assert of_teacher.returncode == of_student.returncode == 0, (
        of_teacher.stderr + of_student.stderr
    )
    for done, told in zip(refused, refusals.values(), strict=True):
        runs.check_refusal(done, *told)
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "adapter"}
    assert files.read_json(tmp_path / "adapter" / "config.json")["exit_layer"] == 1
    assert "Kangaroo adapter after layer 1" in (tmp_path / "adapter" / "README.md").read_text(
        encoding="utf-8"
    )

    flags = [
        *SHORT,
        f"--config.data.files={texts}/*.txt",
        "--config.student.kind=decoder",
        f"--workdir={run}",
    ]
    runs.succeed("teacher", *flags, f"--from_hf={tmp_path}/teacher")
    (tmp_path / "teacher").rename(tmp_path / "moved")
    check_came_back(Workdir(folder), Workdir(run), source=tmp_path / "teacher")
    export = [f"--workdir={run}", "--loss=tv", "--seed=0", f"--output={tmp_path}/draft"]
    runs.check_refusal(runs.run("export", *export), f"no checkpoint in {run}/students; train first")
    runs.succeed("distill", *flags)
    check_short(run)
    runs.succeed("export", *export)
    check_draft(tmp_path / "draft", run)


def check_came_back(there, here, *, source):
    """The teacher of run `here`, by way of the Llama folder `source`, is that of run `there`."""
    mine, theirs = (
        teacher.restore(run.spec().teacher, run, _size(run.root)).params for run in (here, there)
    )
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    facts = here.facts()
    assert facts["tokenizer fingerprint"] == there.facts()["tokenizer fingerprint"]
    assert facts["teacher taken from"] == here.config()["teacher"]["checkpoint"] == str(source)
    assert facts[teacher.QUALITY] > 0
    assert len(facts["fingerprint of the teacher's files"]) == 16


def check_draft(folder, run):
    """What lies in `folder` is the student that was measured, with its card."""
    tokens, nothing = np.arange(24)[None], models.TeacherOutput(None, None, None, vocab_size=0)
    student = students.restore_one(str(run), loss="tv", seed=0)
    np.testing.assert_array_equal(llama.read(folder)(tokens).logits, student(tokens, nothing))
    kept = {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in folder.iterdir()} == kept
    card = (folder / "README.md").read_text(encoding="utf-8")
    mine = [
        row
        for row in read(run)
        if (row["loss"], row["seed"], row["measure"]) == ("tv", "0", "acceptance")
    ]
    assert len(mine) == 2
    for row in mine:
        value, low, high = (f"{float(row[name]):.4f}" for name in ("value", "low", "high"))
        at = f"{float(row['temperature']):g}"
        assert (
            f"| generated | `acceptance` | {at} |  | {value} | {low} to {high} | {row['n']} |"
            in card
        )


def test_swapped_tokens_are_noticed(measured):
    runs.check_refusal(measured[1], "the test tokens' fingerprint is", "as the run began with")
