"""The study of gaps: its mistakes against NumPy, its table against sums worked by hand, a small
study."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import gap as gap_config
from experiments.gap import arms, causes, formulas, lessons, ratios, report
from jaxdiv import models
from jaxdiv.evaluation.measurement import Sums
from jaxdiv.schema import UNTRAINED
from tests import commands, runs

CONFIG = gap_config.get_config().to_dict()
SMALL = (
    *(
        "--config.teacher.steps=30",
        "--config.student.steps=4",
        "--config.student.optimizer.warmup_steps=1",
    ),
    *(
        "--config.teacher.width=32",
        "--config.teacher.mlp_width=64",
        "--config.data.sequence_length=32",
    ),
    *(
        "--config.evaluation.documents=4",
        "--config.evaluation.document_tokens=64",
        "--config.seeds=2",
    ),
    "--config.evaluation.temperatures=(0.0,1.0)",
    *("--config.evaluation.prompt_tokens=8", "--config.evaluation.generated_tokens=24"),
)


def both(seed=0, shape=(4, 7, 11)):
    draw = np.random.default_rng(seed)
    return [3 * draw.normal(size=shape).astype(np.float32) for _ in range(2)]


def log_softmax(x):
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x):
    return np.exp(log_softmax(x))


def test_formulas_are_what_their_names_say():
    student, teacher = both()
    p, log_p, q, log_q = (
        softmax(teacher),
        log_softmax(teacher),
        softmax(student),
        log_softmax(student),
    )
    twice = log_softmax(q)
    expected = {
        formulas.softmax_twice: {"ce": -(p * twice), "kl": p * (log_p - twice)},
        formulas.without_log: {"ce": -(p * q), "kl": p * (log_p - q)},
        formulas.arguments_swapped: {"ce": -(q * log_p), "kl": q * (log_q - log_p)},
        formulas.attached: {"ce": -(p * log_q), "kl": p * (log_p - log_q)},
        formulas.right: {"ce": -(p * log_q), "kl": p * (log_p - log_q)},
    }
    for formula, by_loss in expected.items():
        for loss, terms in by_loss.items():
            found = formula(loss)(student, teacher)
            np.testing.assert_allclose(
                found, terms.sum(-1), rtol=1e-5, err_msg=f"{formula.__name__} {loss}"
            )
    for loss in formulas.LOSSES:
        for log_of_softmax in (False, True):
            rough = formulas.in_float16(loss, log_of_softmax=log_of_softmax)(student, teacher)
            np.testing.assert_allclose(
                rough, expected[formulas.right][loss].sum(-1), rtol=0.02, atol=0.01
            )
    cool, cooler = softmax(teacher / 3), log_softmax(student / 3)
    for squared, factor in ((True, 9), (False, 1)):
        found = formulas.right("ce", temperature=3.0, squared=squared)(student, teacher)
        np.testing.assert_allclose(found, factor * -(cool * cooler).sum(-1), rtol=1e-5)


def test_only_the_logarithm_of_a_rounded_softmax_is_not_finite():
    teacher, student = np.zeros((1, 1, 2), np.float32), np.array([[[0, 30.0]]], np.float32)
    for log_of_softmax in (False, True):
        found = formulas.in_float16("kl", log_of_softmax=log_of_softmax)(student, teacher)
        assert np.isfinite(found).all() != log_of_softmax


def test_lessons_are_what_their_names_say():
    draw = np.random.default_rng(0)
    rows, length, vocab_size = 4, 8, 5
    logits, hidden = (
        draw.normal(size=(rows, length, vocab_size)),
        draw.normal(size=(rows, length, 3)),
    )
    weights = np.ones((rows, length))
    weights[-1] = 0  # a row that fills the batch up
    output = models.TeacherOutput(features=None, hidden=hidden, head=None, vocab_size=vocab_size)
    batch = {"weights": jnp.asarray(weights), "inputs": jnp.full((rows, length), 2)}
    batch["labels"] = jnp.asarray(draw.integers(vocab_size, size=(rows, length)))
    made = lessons.Lessons(config=CONFIG, teacher=None, padding=0)
    passes = {
        causes.OWN: (output, logits),
        causes.OTHER_LAYER: ("another", logits),
        causes.PADDED: ("padded", logits),
    }
    of = {sees: made.of(sees, passes, batch) for sees in (*passes, *lessons._MISTAKES)}
    assert (of[causes.OTHER_LAYER].output, of[causes.PADDED].output) == ("another", "padded")
    shifted = of[causes.NEXT]
    np.testing.assert_allclose(shifted.target[:, :-1], logits[:, 1:], rtol=1e-6)
    np.testing.assert_array_equal(shifted.weights, weights * (np.arange(length) < length - 1))
    np.testing.assert_allclose(of[causes.OTHER_ROW].output.hidden[:3], hidden[[2, 0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(
        softmax(np.asarray(of[causes.TOP_CLASS].target)).argmax(-1), logits.argmax(-1)
    )
    sure = softmax(np.maximum(of[causes.LABELS].target, -1e9))
    np.testing.assert_array_equal(sure, np.eye(vocab_size)[batch["labels"]])
    np.testing.assert_array_equal((of[causes.PADDED].inputs == 2).sum(1), [2, 4, 6, 8])
    np.testing.assert_array_equal(of[causes.PADDED].weights, weights)  # counted all the same


@pytest.mark.parametrize("formula", [formulas.attached, formulas.without_log, formulas.in_float16])
def test_a_teacher_that_is_sure_leaves_losses_finite(formula):
    """As `hard_labels` joined to them has it: KL and cross-entropy are one."""
    student, teacher = both()
    sure = jnp.log(jax.nn.one_hot(teacher.argmax(-1), teacher.shape[-1]))
    ce, kl = (formula(loss)(student, sure) for loss in formulas.LOSSES)
    np.testing.assert_allclose(kl, ce, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda z: formula("kl")(z, sure).sum())(student)).all()


@pytest.mark.parametrize(
    "formula", [formulas.softmax_twice, formulas.without_log, formulas.arguments_swapped]
)
def test_gradients_are_those_of_the_mistaken_formula(formula):
    """By differences; all of them train something, but not what was meant."""
    student, teacher = both()
    rightly = jax.grad(lambda z: formulas.right("kl")(z, teacher).sum())(student)
    for loss in formulas.LOSSES:
        total = jax.jit(lambda z, loss=loss: formula(loss)(z, teacher).sum())
        found = jax.grad(total)(student)
        direction = np.random.default_rng(1).normal(size=student.shape).astype(np.float32)
        difference = (total(student + 1e-2 * direction) - total(student - 1e-2 * direction)) / 2e-2
        np.testing.assert_allclose(jnp.vdot(found, direction), difference, rtol=0.02)
        assert jnp.abs(found - rightly).max() > 0.1 * jnp.abs(rightly).max()


def test_an_attached_teacher_of_cross_entropy_grows_sure():
    """Its gradient is that of KL and of its own entropy, which falls."""
    student, teacher = both()
    by_ce, by_kl = (
        jax.grad(lambda z, loss=loss: formulas.attached(loss)(student, z).sum())(teacher)
        for loss in formulas.LOSSES
    )
    entropy = jax.grad(lambda z: -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z)))(teacher)
    np.testing.assert_allclose(by_ce, by_kl + entropy, atol=1e-5)


def test_small_gradients_vanish_in_float16_unless_the_loss_is_scaled():
    student, teacher = both()
    weights = np.ones(student.shape[:2], np.float32)
    weights[0, 0] = 1e5  # of a mean in which the others are next to nothing

    def gradient(scale):
        def mean(z):
            return formulas.mean_in_float16(
                formulas.in_float16("kl", scale=scale)(z, teacher), weights / 1e5, scale
            )

        return np.asarray(jax.jit(jax.grad(mean))(student))

    rightly = jax.grad(
        lambda z: jnp.sum(formulas.right("kl")(z, teacher) * weights) / weights.sum()
    )(student)
    found = {scale: gradient(scale) for scale in (1.0, 2.0**14)}
    small = (np.abs(rightly) > 0) & (np.abs(rightly) < 2e-8)  # float16's least number is 6e-8
    assert small.mean() > 0.05
    assert (found[1.0][small] == 0).mean() > 0.9
    off = {
        scale: np.abs(mine - rightly)[1:].sum() / np.abs(rightly)[1:].sum()
        for scale, mine in found.items()
    }
    assert off[2.0**14] < 0.1 * off[1.0]


def test_reductions():
    values, weights = np.full((4, 6), 2.0), np.ones((4, 6))
    weights[0, :3] = 0
    found = [
        formulas.mean(values, weights),
        formulas.mean_over_vocabulary(values, weights, 10),
        formulas.mean_over_rows(values, weights),
        formulas.total(values, weights),
    ]
    np.testing.assert_allclose(found, [2, 0.2, 2 * 21 / 4, 42])
    weights[-1] = 0  # a row that fills the batch up
    np.testing.assert_allclose(formulas.mean_over_rows(values, weights), 2 * 15 / 3)


def test_causes_are_read_and_joined():
    found = causes.read("sum+sgd, measured_greedily,sum+measured_at_temperature_20", CONFIG)
    assert found[0].text == causes.BASELINE
    joined = {cause.text: cause for cause in found}
    assert joined["sum+sgd"].change.optimizer["name"] == "sgd"
    assert joined["measured_greedily"].training == causes.BASELINE
    assert [arm.text for arm in arms.of(found)] == [
        *("baseline:ce", "baseline:kl", "sum+sgd:ce", "sum+sgd:kl", "sum:ce", "sum:kl"),
    ]
    every = causes.read(CONFIG["causes"], CONFIG)
    assert {*causes.TRAINING, *causes.MEASURING} <= {
        part for cause in every for part in cause.text.split("+")
    }
    decoder = gap_config.get_config("decoder").to_dict()
    assert len(causes.read(decoder["causes"], decoder)) == len(every) - 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("softmax_twise", "did you mean `softmax_twice`"),
        ("sum,sum", "twice"),
        ("sum+mean_over_vocabulary", "changes the reduce twice"),
        ("sgd+adam_large_epsilon+sgd", "changes the optimizer twice"),
        ("measured_at_temperature_20", "needs 20 among `config.evaluation.temperatures`"),
        ("sgd+adam_large_epsilon", "SGD has no epsilon"),
        ("", "no cause ''"),
        (("sum", "sgd"), "must be names by commas"),
    ],
)
def test_causes_that_are_none_are_refused(text, message):
    config = {**CONFIG, "evaluation": {**CONFIG["evaluation"], "temperatures": (0.0, 1.0)}}
    with pytest.raises(ValueError, match=message):
        causes.read(text, config)


def test_causes_that_a_config_has_no_room_for_are_refused():
    alone = {**CONFIG, "student": {**CONFIG["student"], "batch_size": 1}}
    with pytest.raises(ValueError, match="batch_size` = 1 has no other sequence"):
        causes.read("another_sequence", alone)
    with pytest.raises(ValueError, match="baseline needs 1 among"):
        causes.read(
            "sum", {**CONFIG, "evaluation": {**CONFIG["evaluation"], "temperatures": (0.0, 2.0)}}
        )


def test_a_decoder_has_no_hidden_state_to_mistake():
    config = {**CONFIG, "student": {**CONFIG["student"], "kind": "decoder"}}
    with pytest.raises(ValueError, match="another_sequence is about the teacher's hidden state"):
        causes.read("another_sequence", config)


def test_students_that_learnt_another_measure_are_trained():
    """The top class alone is learnt although samples show less of it."""
    greedy = {("greedy_match", 0.0): 0.5}
    found = {
        name: {**FOUND[name], ("greedy_match", 0.0): sums(0.3)}
        for name in (UNTRAINED, "baseline:ce", "baseline:kl")
    }
    sharp = {("acceptance", 1.0): sums(0.19), **{cell: sums(rate) for cell, rate in greedy.items()}}
    rows = ratios.rows(
        causes.read("hard_labels", CONFIG),
        found | dict.fromkeys(("hard_labels:ce", "hard_labels:kl"), sharp),
    )
    assert {row["trained"] for row in rows if row["cause"] == "hard_labels"} == {"both"}


def test_a_dead_baseline_is_said():
    with pytest.raises(ValueError, match="all baseline students of kl"):
        ratios.rows(causes.read("sum", CONFIG), {**FOUND, "baseline:kl": {}})


def sums(rate, *, lost=()):
    """Of 3 seeds and 5 documents, accepted at `rate` but for a little that differs."""
    wiggle = 1 + 0.01 * np.arange(-7, 8).reshape(3, 5)
    numerator = 100 * rate * wiggle
    numerator[list(lost)] = np.nan
    return Sums(numerator, np.full((3, 5), 100.0), np.full(5, 100))


def cells(accepted, exact):
    known = {
        ("acceptance", 1.0): accepted,
        ("acceptance", 20.0): 0.99,
        ("acceptance_exact_match", 1.0): exact,
    }
    return {
        cell: sums(rate)
        for cell, rate in {**known, ("acceptance_exact_match", 20.0): 0.001}.items()
    }


FOUND = {
    UNTRAINED: cells(0.2, 0.01),
    **dict.fromkeys(("baseline:ce", "baseline:kl"), cells(0.8, 0.08)),
    "sum:ce": cells(0.2, 0.02),
    "sum:kl": cells(0.4, 0.04),
    "sgd:ce": {},
    "sgd:kl": {("acceptance", 1.0): sums(0.5, lost=[1])},
}


def test_the_table_says_where_a_cause_is_applied():
    text = "sum,sgd,measured_by_exact_match,sum+measured_by_exact_match"
    frame = report.table(ratios.rows(causes.read(text, CONFIG), FOUND))
    at = frame.set_index(["cause", "applied_to", "measure", "temperature"])
    accepted = functools.partial(lambda *key: at.loc[(*key, "acceptance", 1.0)])
    assert frame["cause"].iloc[0] == "baseline"
    assert set(frame[frame["cause"].eq("baseline")]["applied_to"]) == {"both"}
    for (cause, applied_to), (ce, kl) in {
        ("baseline", "both"): (0.8, 0.8),
        ("sum", "both"): (0.2, 0.4),
        ("sum", "ce"): (0.2, 0.8),
        ("sum", "kl"): (0.8, 0.4),
        ("measured_by_exact_match", "ce"): (0.08, 0.8),
        ("measured_by_exact_match", "kl"): (0.8, 0.08),
        ("sum+measured_by_exact_match", "both"): (0.02, 0.04),
        ("sum+measured_by_exact_match", "ce"): (0.02, 0.8),
    }.items():
        row = accepted(cause, applied_to)
        np.testing.assert_allclose(
            [row["ce"], row["kl"], row["ratio"]], [ce, kl, kl / ce], rtol=1e-9
        )
        assert row["low"] <= row["ratio"] <= row["high"]
    assert at.loc[("measured_by_exact_match", "ce", "acceptance", 20.0)]["ratio"] == pytest.approx(
        990
    )
    assert set(frame[frame["cause"].eq("measured_by_exact_match")]["measure"]) == {"acceptance"}
    assert [accepted("sum", side)["trained"] for side in ("both", "ce", "kl")] == [
        "kl",
        "kl",
        "both",
    ]
    lost = accepted("sgd", "both")
    assert np.isnan([lost["ce"], lost["ratio"], lost["low"]]).all()
    assert lost["kl"] == pytest.approx(0.5)
    assert lost["trained"] == "neither"
    seen = {row["cause"]: row["excluded"] for row in report.summary(frame)}
    assert seen["baseline"]
    assert not seen["sgd"]
    gaps = {row["cause"]: row["can_make"] for row in report.summary(frame)}
    assert gaps == {
        "baseline": 0,
        "sum": 2,
        "sgd": 0,
        "measured_by_exact_match": 100,
        "sum+measured_by_exact_match": 100,
    }


QUICK = "--config=configs/gap.py:quick"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gap") / "study"
    trained = "untrained,float16_log_of_softmax,wrong_exit_layer,padding_counted,head_trained"
    trained += ",hard_labels+teacher_not_detached"
    causes = f"--config.causes={trained},counted_a_call,measured_on_own_text"
    flags = [QUICK, f"--workdir={folder}", causes, *SMALL]
    return folder, flags, runs.succeed("gap", *flags)


def test_a_study_as_users_run_it(study):
    folder, _, printed = study
    frame = pd.read_csv(folder / report.FILE)
    assert list(frame.columns) == list(report.COLUMNS)
    assert "wrong_exit_layer" in printed
    assert (folder / "gap_ratios.png").stat().st_size > 10_000
    sound = frame[frame["cause"].eq("baseline")]
    np.testing.assert_allclose(sound["ratio"].dropna(), 1, atol=1e-4)  # their gradients are equal
    assert {"acceptance", "greedy_match", "acceptance_typical", "tau", "accepted_a_call"} <= set(
        sound["measure"]
    )
    accepted = frame[frame["measure"].eq("acceptance") & frame["temperature"].eq(1)].set_index(
        ["cause", "applied_to"]
    )
    assert (
        accepted.loc["untrained"]["trained"]
        == pd.Series({"both": "neither", "ce": "kl", "kl": "ce"})
    ).all()
    for cause, row in accepted.xs("both", level="applied_to").iterrows():
        if cause not in ("baseline", "untrained"):
            assert row["ce"] != accepted.loc[("baseline", "both")]["ce"], cause
            assert np.isfinite(row["kl"]), cause
    by_student = pd.read_csv(folder / report.ACCEPTANCE).set_index(
        ["training", "loss", "measure", "temperature"]
    )
    of_baseline = by_student.loc[("baseline", "ce", "acceptance", 1.0)]
    assert of_baseline["value"] == pytest.approx(accepted.loc[("baseline", "both")]["ce"])
    assert of_baseline["low"] < of_baseline["value"] < of_baseline["high"]
    tau = frame[frame["measure"].eq("tau")].set_index(["cause", "applied_to", "temperature"])["ce"]
    a_call = frame[frame["measure"].eq("accepted_a_call")].set_index(
        ["cause", "applied_to", "temperature"]
    )["ce"]
    np.testing.assert_allclose(tau - 1, a_call, rtol=1e-6)


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
    others = (
        [flag, *flags[1:2]] if flag.startswith("--config=") else [*flags, flag] for flag in REFUSED
    )
    changed = [*flags, "--config.causes=softmax_twice", "--config.student.steps=5"]
    another, again, *refused = commands.many("gap.__main__", [changed, flags, *others])
    runs.check_refusal(another, "students of other causes")  # and leaves the folder as it is
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed
    assert (folder / report.FILE).read_bytes() == before
    for done, message in zip(refused, REFUSED.values(), strict=True):
        runs.check_refusal(done, message)
