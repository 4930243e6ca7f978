"""Benchmarks run and print what they say; their times are no test's business."""

import csv
import re

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import losses, peers
from tests import commands, references, runs


def _rows(printed):
    return [
        [cell.strip() for cell in line.strip("│\n").split("│")]
        for line in printed.splitlines()
        if line.startswith("│")
    ]


def test_population_prints_a_row_for_each_number_of_students():
    printed = runs.succeed(
        "benchmarks.population", runs.SMOKE, "--students=1,3", "--rounds=2", "--loss=0.5*kl+0.5*tv"
    )
    assert "a plain jax.grad" in printed
    rows = _rows(printed)
    assert [row[0] for row in rows] == ["1", "3"]
    for count, _, ratio, _, _, faster in (map(float, row) for row in rows):
        assert abs(count / ratio - faster) < 0.02 * faster + 0.02


@pytest.mark.slow
def test_checkpointing_prints_what_saves_and_starts_take():
    printed = runs.succeed("benchmarks.checkpointing", runs.SMOKE, "--rounds=2", "--stretch=3")
    assert re.search(
        r"one save adds -?\d+ ms \(quartiles -?\d+ to -?\d+, 2 pairs\): -?[\d.]+% of 5 steps",
        printed,
    )
    assert re.search(
        r"start to first step: [\d.]+ s without compilations, [\d.]+ s with, [\d.]+ s with and",
        printed,
    )


REFUSED = {
    "--losses=klx": "did you mean `kl`?",
    "--losses=z_loss": "no peer has it; known: ",
    "--rows=0": "rows",
    "--vocabulary=1": "vocabulary",
    "--dtype=float16": "float32|bfloat16",
    "--peers=numpy": "unknown library `numpy`; known: jaxdiv, jnp, optax, distrax, torch",
    "--output=tests": "--output=tests is a folder",
}


def test_losses_prints_and_writes_a_row_for_each_loss_and_library_or_refuses(tmp_path):
    output = tmp_path / "losses.csv"
    arguments = ["--losses=ce_data,kl", "--peers=jnp,optax", f"--output={output}"]
    sizes = ["--rows=3", "--vocabulary=500", "--rounds=2"]
    done, *refused = commands.many(
        "benchmarks.losses", [[*arguments, *sizes], *([argument] for argument in REFUSED)]
    )
    for process, message in zip(refused, REFUSED.values(), strict=True):
        runs.check_refusal(process, message)
    assert done.returncode == 0, done.stderr
    rows = _rows(done.stdout)
    assert [row[0] for row in rows] == ["cross_entropy_data", "", "", "forward_kl", "", ""]
    assert [row[1] for row in rows] == ["jaxdiv", "jnp", "optax"] * 2
    with output.open(encoding="utf-8") as stream:
        written = list(csv.DictReader(stream))
    for row, record in zip(rows, written, strict=True):
        assert row[1] == record["library"]
        assert float(row[2]) == pytest.approx(float(record["value"]), abs=0.006)
        assert (record["rows"], record["vocabulary"], record["dtype"]) == ("3", "500", "float32")


def test_fused_prints_a_row_for_each_contestant_and_its_memory():
    sizes = ["--tokens=300", "--width=8", "--vocabulary=400", "--rounds=2"]
    one, many = commands.many(
        "benchmarks.fused",
        [["--losses=kl,0.5*kl+0.5*tv", "--chunk=16", *sizes], ["--students=2", "--frozen", *sizes]],
    )
    assert one.returncode == many.returncode == 0, one.stderr + many.stderr
    rows = _rows(one.stdout)
    names = "fused dense jnp products fused dense products"
    assert " ".join(row[1] for row in rows) == names
    memory = {row[1]: float(row[4]) for row in rows[:4]}
    assert memory["fused"] < memory["dense"] / 3
    assert [row[1] for row in _rows(many.stdout)] == ["fused", "calls", "products"]
    assert "2 student(s), frozen head" in many.stdout


def test_decoding_prints_speeds_parts_and_whether_greedy_texts_are_plain_decodings(tmp_path):
    folder = commands.untrained(tmp_path / "run", runs.write_texts(tmp_path / "texts"))
    output = tmp_path / "decoding.csv"
    sizes = ["--texts=3", "--tokens=8", "--rounds=2", "--batches=2", "--gammas=2", "--etas=0,0.6"]
    printed = runs.succeed(
        "benchmarks.decoding", f"--workdir={folder}", f"--output={output}", *sizes
    )
    with output.open(encoding="utf-8") as stream:
        written = list(csv.DictReader(stream))
    names = ["plain", "γ=2 η=0", "γ=2 η=0.6", "lookup γ=2"]
    assert [(row["temperature"], row["setting"]) for row in written] == [
        (t, n) for t in ("0.0", "1.0") for n in names
    ]
    assert [row["as_plain"] for row in written] == ["3/3"] * 4 + [""] * 4
    assert all(float(row["compile_s"]) > 0 for row in written)
    assert printed.count("Reading the weights") == 2
    assert re.search(
        r"γ=2, batch 2, ms: plain: prompt .*draft .*verify .*; chain: prompt .*speed-up \d", printed
    )


def test_peers_that_are_asked_for_must_be_installed(monkeypatch, capsys):
    def missing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    assert list(losses.installed_libraries(None)) == ["jaxdiv", "jnp"]
    messages = capsys.readouterr().err
    for name in ("distrax", "optax", "torch"):
        assert f"{name} is left out: No module named '{name}" in messages
    with pytest.raises(
        ValueError,
        match=r"--peers=torch: can't be imported \(No module named 'torch'\); pip install",
    ):
        losses.installed_libraries(["torch"])


def _record(library, value, error=0.0):
    times = dict.fromkeys(losses.KINDS, value)
    errors = dict.fromkeys(("random_value", "random_gradient", "near_value"), 0.0)
    return {"loss": "forward_kl", "library": library, **times, **errors, "near_gradient": error}


def test_only_correct_peers_count():
    assert losses.verdict(_record("a", 1.0)) == "correct"
    assert losses.verdict(_record("a", 1.0, 0.17)) == "wrong: off by 17%"
    assert losses.verdict(_record("a", 1.0, 8.4)) == "wrong: off by 840%"
    assert losses.verdict(_record("a", 1.0, float("nan"))) == "wrong: not finite"
    reference = _record("jaxdiv", 2.0)
    assert "Slower than a correct peer: none." in losses.summary(
        [reference, _record("a", 1.0, 0.17), _record("b", 3.0)]
    )
    assert "forward_kl both 2.00 × a" in losses.summary(
        [reference, _record("a", 1.0), _record("b", 3.0)]
    )


def _errors(name, loss, distance, classes):
    inputs = losses.random_inputs(loss, 3, classes, jnp.float32, distance)
    contestant = losses.contestant(name, peers.load(name)[loss], inputs)
    return losses.errors(contestant, loss, inputs)


@pytest.mark.parametrize("loss", sorted(peers.load("jnp")))
def test_plain_peers_agree_with_the_definitions(loss):
    inputs = losses.random_inputs(loss, 3, 1000, jnp.float32)
    value, gradient = losses.reference(loss, inputs, np.arange(3))
    student, teacher = np.asarray(inputs.student), np.asarray(inputs.teacher)
    if inputs.target.ndim == 1:
        labels = np.asarray(inputs.target)
        np.testing.assert_allclose(value, references.label_loss(student, labels), rtol=1e-12)
    else:
        np.testing.assert_allclose(value, references.VALUES[loss](student, teacher), rtol=1e-9)
        right = references.gradient(loss, student, teacher)
        np.testing.assert_allclose(gradient, right, rtol=1e-7, atol=1e-12)
    for name in ("jaxdiv", "jnp", "optax"):
        if loss in peers.load(name):
            assert max(_errors(name, loss, 1.0, 1000)) < 1e-5


def test_only_jaxdiv_keeps_the_digits_of_a_near_student():
    assert _errors("jaxdiv", "forward_kl", 1e-3, 20000)[0] < 1e-5
    assert _errors("jnp", "forward_kl", 1e-3, 20000)[0] > losses.ALLOWED
