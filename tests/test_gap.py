"""The study of gaps: its mistakes against NumPy, its table against sums worked by hand, a small
study."""

import itertools
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import gap as gap_config
from experiments.gap import causes, formulas, ratios, report, training
from jaxdiv import models
from jaxdiv.evaluation.measurement import Sums
from jaxdiv.schema import UNTRAINED
from tests import commands, runs
from tests.references import log_softmax

CONFIG = gap_config.get_config().to_dict()


def logits(seed=0, shape=(4, 7, 11)):
    draw = np.random.default_rng(seed)
    return [3 * draw.normal(size=shape).astype(np.float32) for _ in range(2)]


def softmax(x):
    return np.exp(log_softmax(x))


def test_formulas():
    student, teacher = logits()
    p, log_p, q = softmax(teacher), log_softmax(teacher), softmax(student)
    log_q, twice = log_softmax(student), log_softmax(q)
    right = {"ce": -(p * log_q), "kl": p * (log_p - log_q)}
    expected = {
        formulas.softmax_twice: {"ce": -(p * twice), "kl": p * (log_p - twice)},
        formulas.without_log: {"ce": -(p * q), "kl": p * (log_p - q)},
        formulas.arguments_swapped: {"ce": -(q * log_p), "kl": q * (log_q - log_p)},
        formulas.attached: right,
        formulas.right: right,
    }
    for formula, by_loss in expected.items():
        for loss, terms in by_loss.items():
            values, name = formula(student, teacher, loss), f"{formula.__name__} {loss}"
            np.testing.assert_allclose(values, terms.sum(-1), rtol=1e-5, err_msg=name)
    for loss, log_of_softmax in itertools.product(formulas.LOSSES, (False, True)):
        rough = formulas.in_float16(student, teacher, loss, log_of_softmax=log_of_softmax)
        np.testing.assert_allclose(rough, right[loss].sum(-1), rtol=0.02, atol=0.01)
    cross_entropy = -(softmax(teacher / 3) * log_softmax(student / 3)).sum(-1)
    for squared, factor in ((True, 9), (False, 1)):
        values = formulas.right(student, teacher, "ce", temperature=3.0, squared=squared)
        np.testing.assert_allclose(values, factor * cross_entropy, rtol=1e-5)
    # Only the logarithm of a rounded softmax is not finite.
    student, teacher = np.array([[[0, 30.0]]], np.float32), np.zeros((1, 1, 2), np.float32)
    for log_of_softmax in (False, True):
        values = formulas.in_float16(student, teacher, "kl", log_of_softmax=log_of_softmax)
        assert np.isfinite(values).all() != log_of_softmax


def test_views():
    draw = np.random.default_rng(0)
    rows, length, vocab_size = 4, 8, 5
    target, hidden = (draw.normal(size=(rows, length, size)) for size in (vocab_size, 3))
    weights = np.ones((rows, length))
    weights[-1] = 0  # a row that fills the batch up
    output = models.TeacherOutput(features=None, hidden=hidden, head=None, vocab_size=vocab_size)
    batch = {"weights": jnp.asarray(weights), "inputs": jnp.full((rows, length), 2)}
    batch["labels"] = jnp.asarray(draw.integers(vocab_size, size=(rows, length)))
    passes = {
        causes.UNCHANGED: (batch["inputs"], output, target),
        causes.OTHER_LAYER: (batch["inputs"], "another", target),
        causes.PADDED: (training.pad(batch["inputs"], 0), "padded", target),
    }
    views = [*passes, causes.NEXT_TOKEN, causes.OTHER_ROW, causes.TOP_CLASS, causes.LABELS]
    inputs, outputs, targets, weighted = (
        dict(zip(views, parts, strict=True))
        for parts in zip(
            *(training.student_batch(view, passes, batch) for view in views), strict=True
        )
    )
    assert outputs[causes.OTHER_LAYER] == "another"
    assert outputs[causes.PADDED] == "padded"
    shifted = weights * (np.arange(length) < length - 1)
    np.testing.assert_array_equal(weighted[causes.NEXT_TOKEN], shifted)
    np.testing.assert_allclose(targets[causes.NEXT_TOKEN][:, :-1], target[:, 1:], rtol=1e-6)
    other_row = outputs[causes.OTHER_ROW].hidden
    np.testing.assert_allclose(other_row[:3], hidden[[2, 0, 1]], rtol=1e-6)
    top_class = softmax(np.asarray(targets[causes.TOP_CLASS])).argmax(-1)
    np.testing.assert_array_equal(top_class, target.argmax(-1))
    one_hot = softmax(np.maximum(targets[causes.LABELS], -1e9))
    np.testing.assert_array_equal(one_hot, np.eye(vocab_size)[batch["labels"]])
    np.testing.assert_array_equal((inputs[causes.PADDED] == 2).sum(1), [2, 4, 6, 8])
    np.testing.assert_array_equal(weighted[causes.PADDED], weights)  # counted all the same


@pytest.mark.parametrize("formula", [formulas.attached, formulas.without_log, formulas.in_float16])
def test_a_certain_teacher_leaves_losses_finite(formula):
    """KL and cross-entropy are equal then, as under `hard_labels` joined to another cause."""
    student, teacher = logits()
    certain = jnp.log(jax.nn.one_hot(teacher.argmax(-1), teacher.shape[-1]))
    ce, kl = (formula(student, certain, loss) for loss in formulas.LOSSES)
    np.testing.assert_allclose(kl, ce, rtol=1e-5)
    gradient = jax.grad(lambda z: formula(z, certain, "kl").sum())(student)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "formula", [formulas.softmax_twice, formulas.without_log, formulas.arguments_swapped]
)
def test_gradients_of_mistaken_formulas(formula):
    """Gradients agree with differences, and train something other than what was meant."""
    student, teacher = logits()
    right = jax.grad(lambda z: formulas.right(z, teacher, "kl").sum())(student)
    for loss in formulas.LOSSES:
        total = jax.jit(lambda z, loss=loss: formula(z, teacher, loss).sum())
        gradient = jax.grad(total)(student)
        direction = np.random.default_rng(1).normal(size=student.shape).astype(np.float32)
        difference = (total(student + 1e-2 * direction) - total(student - 1e-2 * direction)) / 2e-2
        np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=0.02)
        assert jnp.abs(gradient - right).max() > 0.1 * jnp.abs(right).max()


def test_an_attached_teacher_of_cross_entropy_loses_entropy():
    """The teacher's gradient is KL's plus that of its own entropy, which falls."""
    student, teacher = logits()
    by_ce, by_kl = (
        jax.grad(lambda z, loss=loss: formulas.attached(student, z, loss).sum())(teacher)
        for loss in formulas.LOSSES
    )
    entropy = jax.grad(lambda z: -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z)))(teacher)
    np.testing.assert_allclose(by_ce, by_kl + entropy, atol=1e-5)


def test_small_gradients_vanish_in_float16_unless_the_loss_is_scaled():
    student, teacher = logits()
    weights = np.ones(student.shape[:2], np.float32)
    weights[0, 0] = 1e5  # makes all other tokens next to nothing in the mean

    def mean(z, scale):
        values = formulas.in_float16(z, teacher, "kl", scale=scale)
        return formulas.mean_in_float16(values, weights / 1e5, scale=scale)

    def right_mean(z):
        return jnp.sum(formulas.right(z, teacher, "kl") * weights) / weights.sum()

    right = jax.grad(right_mean)(student)
    scales = (1.0, 2.0**14)
    plain, scaled = (np.asarray(jax.jit(jax.grad(mean))(student, scale)) for scale in scales)
    small = (np.abs(right) > 0) & (np.abs(right) < 2e-8)  # float16's least number is 6e-8
    assert small.mean() > 0.05
    assert (plain[small] == 0).mean() > 0.9
    assert np.abs(scaled - right)[1:].sum() < 0.1 * np.abs(plain - right)[1:].sum()


def test_reductions():
    values, weights = np.full((4, 6), 2.0), np.ones((4, 6))
    weights[0, :3] = 0
    reductions = (
        formulas.mean,
        formulas.mean_over_vocabulary,
        formulas.mean_over_rows,
        formulas.total,
    )
    results = [reduce(values, weights, 10) for reduce in reductions]
    np.testing.assert_allclose(results, [2, 0.2, 2 * 21 / 4, 42])
    weights[-1] = 0  # a row that fills the batch up
    np.testing.assert_allclose(formulas.mean_over_rows(values, weights), 2 * 15 / 3)


def test_causes_are_read_and_joined():
    text = "sum+sgd, measured_greedily,sum+measured_at_temperature_20"
    baseline, joined, greedily, _ = study = causes.read(text, CONFIG)
    assert baseline.text == causes.BASELINE
    assert joined.change.optimizer["name"] == "sgd"
    assert greedily.training == causes.BASELINE
    names = ["baseline:ce", "baseline:kl", "sum+sgd:ce", "sum+sgd:kl", "sum:ce", "sum:kl"]
    assert list(causes.variants(study)) == names
    every = causes.read(CONFIG["causes"], CONFIG)
    parts = {part for cause in every for part in cause.text.split("+")}
    assert {*causes.TRAINING, *causes.MEASURING} <= parts
    decoder = gap_config.get_config("decoder").to_dict()
    assert len(causes.read(decoder["causes"], decoder)) == len(every) - 3


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("softmax_twise", {}, "did you mean `softmax_twice`"),
        ("sum,sum", {}, "twice"),
        ("sum+mean_over_vocabulary", {}, "changes the reduce twice"),
        ("sgd+adam_large_epsilon+sgd", {}, "changes the optimizer twice"),
        ("measured_at_temperature_20", {}, "needs 20 among `config.evaluation.temperatures`"),
        ("sgd+adam_large_epsilon", {}, "SGD has no epsilon"),
        ("", {}, "no cause ''"),
        (("sum", "sgd"), {}, "must be names separated by commas"),
        ("another_sequence", {"batch_size": 1}, "batch_size` = 1 has no other sequence"),
        ("another_sequence", {"kind": "decoder"}, "is about the teacher's hidden state"),
        ("sum", {"temperatures": (0.0, 2.0)}, "baseline needs 1 among"),
    ],
)
def test_wrong_causes_are_refused(text, changes, message):
    temperatures = changes.pop("temperatures", (0.0, 1.0))
    evaluation = {**CONFIG["evaluation"], "temperatures": temperatures}
    student = {**CONFIG["student"], **changes}
    with pytest.raises(ValueError, match=message):
        causes.read(text, {**CONFIG, "evaluation": evaluation, "student": student})


def sums(rate, *, diverged=()):
    """Sums of 3 seeds and 5 documents, accepted at about `rate`."""
    numerator = 100 * rate * (1 + 0.01 * np.arange(-7, 8).reshape(3, 5))
    numerator[list(diverged)] = np.nan
    return Sums(numerator, np.full((3, 5), 100.0), np.full(5, 100))


def measures(accepted, exact):
    return {
        ("acceptance", 1.0): sums(accepted),
        ("acceptance", 20.0): sums(0.99),
        ("acceptance_exact_match", 1.0): sums(exact),
        ("acceptance_exact_match", 20.0): sums(0.001),
    }


SUMS = {
    UNTRAINED: measures(0.2, 0.01),
    **dict.fromkeys(("baseline:ce", "baseline:kl"), measures(0.8, 0.08)),
    "sum:ce": measures(0.2, 0.02),
    "sum:kl": measures(0.4, 0.04),
    "sgd:ce": {},
    "sgd:kl": {("acceptance", 1.0): sums(0.5, diverged=[1])},
}


def test_students_that_learnt_another_measure_are_trained():
    """The top class alone is learnt although samples show less of it."""
    names = (UNTRAINED, "baseline:ce", "baseline:kl")
    sums_by_name = {name: {**SUMS[name], ("greedy_match", 0.0): sums(0.3)} for name in names}
    sharp = {("acceptance", 1.0): sums(0.19), ("greedy_match", 0.0): sums(0.5)}
    sums_by_name |= dict.fromkeys(("hard_labels:ce", "hard_labels:kl"), sharp)
    frame = ratios.table(causes.read("hard_labels", CONFIG), sums_by_name)
    assert set(frame[frame["cause"].eq("hard_labels")]["trained"]) == {"both"}
    with pytest.raises(ValueError, match="all baseline students of kl"):
        ratios.table(causes.read("sum", CONFIG), {**SUMS, "baseline:kl": {}})


def test_ratios_by_where_a_cause_is_applied():
    text = "sum,sgd,measured_by_exact_match,sum+measured_by_exact_match"
    frame = ratios.table(causes.read(text, CONFIG), SUMS)
    acceptance = frame[frame["measure"].eq("acceptance")].set_index(["cause", "applied_to"])
    accepted, at_20 = (acceptance[acceptance["temperature"].eq(t)] for t in (1, 20))
    assert frame["cause"].iloc[0] == "baseline"
    assert set(frame[frame["cause"].eq("baseline")]["applied_to"]) == {"both"}
    for key, (ce, kl) in {
        ("baseline", "both"): (0.8, 0.8),
        ("sum", "both"): (0.2, 0.4),
        ("sum", "ce"): (0.2, 0.8),
        ("sum", "kl"): (0.8, 0.4),
        ("measured_by_exact_match", "ce"): (0.08, 0.8),
        ("measured_by_exact_match", "kl"): (0.8, 0.08),
        ("sum+measured_by_exact_match", "both"): (0.02, 0.04),
        ("sum+measured_by_exact_match", "ce"): (0.02, 0.8),
    }.items():
        row, expected = accepted.loc[key], [ce, kl, kl / ce]
        np.testing.assert_allclose(row[["ce", "kl", "ratio"]].astype(float), expected, rtol=1e-9)
        assert row["low"] <= row["ratio"] <= row["high"]
    exact = frame[frame["cause"].eq("measured_by_exact_match")]
    assert set(exact["measure"]) == {"acceptance"}
    assert at_20.loc["measured_by_exact_match", "ce"]["ratio"] == pytest.approx(990)
    assert accepted.loc["sum"]["trained"].to_dict() == {"both": "kl", "ce": "kl", "kl": "both"}
    diverged = accepted.loc["sgd", "both"]
    assert np.isnan([diverged["ce"], diverged["ratio"], diverged["low"]]).all()
    assert diverged["kl"] == pytest.approx(0.5)
    assert diverged["trained"] == "neither"
    verdicts = {cause: verdict for cause, *_, verdict in report.table(frame).rows}
    assert verdicts == {
        "baseline": "no gap of 2 ×",
        "sum": "≥ 2 ×",
        "sgd": "2 × not shown",
        "measured_by_exact_match": "≥ 100 ×",
        "sum+measured_by_exact_match": "≥ 100 ×",
    }


SMALL = shlex.split("""
--config=configs/gap.py:quick
--config.seeds=3
--config.teacher.steps=30 --config.teacher.depth=2
--config.teacher.width=32 --config.teacher.mlp_width=64
--config.student.steps=16 --config.student.optimizer.warmup_steps=1
--config.data.sequence_length=32
--config.evaluation.documents=4 --config.evaluation.document_tokens=64
--config.evaluation.prompt_tokens=8 --config.evaluation.generated_tokens=24
--config.evaluation.temperatures=(0.0,1.0)
""")
# Every kind of pass of the teacher and every part that is trained, in as few students as can be.
CAUSES = ",".join(
    [
        "untrained",
        "float16_log_of_softmax+wrong_exit_layer+head_trained",
        "padding_counted+teacher_not_detached",
        "counted_a_call",
        "measured_on_own_text",
    ]
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gap") / "study"
    texts = runs.write_texts(folder.parent / "texts")
    flags = [*SMALL, f"--workdir={folder}", f"--config.data.files={texts}/*.txt"]
    flags.append(f"--config.causes={CAUSES}")
    return folder, flags, runs.succeed("gap", *flags)


def test_study(study):
    folder, _, printed = study
    frame = pd.read_csv(folder / report.FILE)
    assert list(frame.columns) == list(ratios.COLUMNS)
    assert "counted_a_call" in printed
    assert (folder / "gap_ratios.png").stat().st_size > 10_000
    frame = frame.set_index(["cause", "applied_to"])
    baseline = frame.loc["baseline"].set_index(["measure", "temperature"])
    # Both losses' gradients are equal.
    np.testing.assert_allclose(baseline["ratio"].dropna(), 1, atol=1e-4)
    accepted = frame[frame["measure"].eq("acceptance") & frame["temperature"].eq(1)]
    trained = {"both": "neither", "ce": "kl", "kl": "ce"}
    assert accepted.loc["untrained"]["trained"].to_dict() == trained
    ce = baseline.loc["acceptance", 1.0]["ce"]
    for cause, row in accepted.xs("both", level="applied_to").iterrows():
        if cause not in ("baseline", "untrained"):
            assert row["ce"] != ce, cause
            assert np.isfinite(row["kl"]), cause
    by_student = pd.read_csv(folder / report.ACCEPTANCE)
    by_student = by_student.set_index(["training", "loss", "measure", "temperature"])
    of_baseline = by_student.loc[("baseline", "ce", "acceptance", 1.0)]
    assert of_baseline["value"] == pytest.approx(ce)
    assert of_baseline["low"] < of_baseline["value"] < of_baseline["high"]
    assert {"greedy_match", "acceptance_typical"} <= set(baseline.index.get_level_values(0))
    for temperature in (0.0, 1.0):
        tau, a_call = (baseline.loc[name, temperature] for name in ("tau", "accepted_a_call"))
        assert tau["ce"] - 1 == pytest.approx(a_call["ce"], rel=1e-6)


REFUSED = {
    "--config.losses=ce,tv": "`config.losses` is 'ce,kl' in this study",
    "--config.temperature=4": "`config.temperature` is 1.0 in this study",
    "--config.data.context=student": "`config.data.context` is 'corpus' in this study",
    "--config.causes=nothing": "no cause 'nothing'",
    "--config=configs/gap.py:tiny": "has the forms full, quick, decoder",
    "--config=configs/smoke.py": "the config has no `causes`",
}


def test_a_second_run_measures_the_same_and_another_is_refused(study):
    folder, flags, printed = study
    before = (folder / report.FILE).read_bytes()
    workdir = f"--workdir={folder}"
    others = (
        [flag, workdir] if flag.startswith("--config=") else [*flags, flag] for flag in REFUSED
    )
    changed = [*flags, "--config.causes=softmax_twice", "--config.student.steps=17"]
    another, again, *refused = commands.many("gap.__main__", [changed, flags, *others])
    runs.check_refusal(another, "students of other causes")  # and leaves the folder as it is
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed
    assert (folder / report.FILE).read_bytes() == before
    for refusal, message in zip(refused, REFUSED.values(), strict=True):
        runs.check_refusal(refusal, message)
