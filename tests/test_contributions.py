"""Losses split into classes: gauges, shares, movers; the command on distributions and on a run."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxdiv
from jaxdiv.contributions import contributions, gauges, shares, top_movers
from jaxdiv.evaluation import contexts, contributions_by_rank
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data, students, teacher
from tests import commands, runs

RNG = np.random.default_rng(4)
TEACHER = jnp.asarray(RNG.normal(size=(5, 12)), jnp.float32)
STUDENT = TEACHER + jnp.asarray(RNG.normal(size=(5, 12)), jnp.float32)
LABELS = jnp.array([0, 3, 11, 3, 7])
P, Q = np.array([0.98, 0.01, 0.01]), np.array([0.979, 0.02, 0.001])
# Each class's part as the formula is written, in plain NumPy.
WRITTEN = {
    "ce": lambda p, q: -p * np.log(q),
    "kl": lambda p, q: p * np.log(p / q),
    "rkl": lambda p, q: q * np.log(q / p),
    "jeffreys": lambda p, q: (q - p) * np.log(q / p),
    "jsd(beta=0.2)": lambda p, q: (
        0.2 * p * np.log(p / (0.2 * p + 0.8 * q)) + 0.8 * q * np.log(q / (0.2 * p + 0.8 * q))
    ),
    "skl(alpha=0.3)": lambda p, q: p * np.log(p / (0.3 * p + 0.7 * q)),
    "srkl(alpha=0.3)": lambda p, q: q * np.log(q / (0.3 * q + 0.7 * p)),
    "rjsd(beta=0.2)": lambda p, q: (
        0.2 * q * np.log(q / (0.2 * q + 0.8 * p)) + 0.8 * p * np.log(p / (0.2 * q + 0.8 * p))
    ),
    "pearson": lambda p, q: (q - p) ** 2 / q,
    "neyman": lambda p, q: (q - p) ** 2 / p,
    "negative_acceptance": lambda p, q: -np.minimum(p, q),
    "ce(smoothing=0.1)": lambda p, q: -(0.9 * p + 0.1 / p.shape[-1]) * np.log(q),
    "hellinger": lambda p, q: 0.5 * (np.sqrt(p) - np.sqrt(q)) ** 2,
    "tv": lambda p, q: 0.5 * abs(q - p),
    "0.5*kl + 2*tv": lambda p, q: 0.5 * p * np.log(p / q) + abs(q - p),
}
TEXTS = (
    *WRITTEN, "alpha", "renyi", "nla", "lk_hybrid", "ce_argmax", "ce_top_k(k=3)", "ce_data",
    "kl + 0.1*ce_data",
)  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
def test_parts_are_the_formula_as_written(text):
    p, q = (np.asarray(jax.nn.softmax(logits), np.float64) for logits in (TEACHER, STUDENT))
    raw = contributions(text, STUDENT, TEACHER, gauge="raw")
    assert_allclose(raw, WRITTEN[text](p, q), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("text", TEXTS)
def test_parts_sum_to_the_loss_and_its_gradient(text):
    loss = jaxdiv.get(text)
    for gauge in set(gauges(text)) - {"gradient"}:
        parts = contributions(text, STUDENT, TEACHER, gauge=gauge)
        assert_allclose(parts.sum(-1), loss(STUDENT, TEACHER), rtol=1e-6)
        assert gauge == "raw" or (parts >= 0).all()
    gradient = contributions(text, STUDENT, TEACHER, gauge="gradient", labels=LABELS)
    assert_allclose(gradient.sum(-1), 0, atol=1e-6)
    if text == "lk_hybrid":  # its weight is a constant
        weight = jnp.exp(-3 * (1 - jaxdiv.total_variation(STUDENT, TEACHER)))[:, None]
        kl, tv = (contributions(name, STUDENT, TEACHER, gauge="gradient") for name in ("kl", "tv"))
        assert_allclose(gradient, weight * kl + (1 - weight) * tv, rtol=1e-5, atol=1e-7)
        return
    step = 1e-3 * jnp.asarray(RNG.normal(size=STUDENT.shape), jnp.float32)
    up, down = (loss(STUDENT + sign * step, TEACHER, labels=LABELS) for sign in (1, -1))
    assert_allclose((gradient * step).sum(-1), (up - down) / 2, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "multiple"), [("ce", 1), ("kl", 1), ("rkl", -1), ("skl", 0.9), ("srkl", -0.9)]
)
def test_gauges_differ_by_a_multiple_of_the_excess(text, multiple):
    p, q = jax.nn.softmax(TEACHER), jax.nn.softmax(STUDENT)
    fixed, raw = (contributions(text, STUDENT, TEACHER, gauge=g) for g in ("fixed", "raw"))
    assert_allclose(fixed - raw, multiple * (q - p), atol=1e-6)


def test_classes_that_one_side_lacks_have_no_nan():
    first = jnp.array([[0.0, 1.0, -jnp.inf, -jnp.inf, 300.0]])
    second = jnp.array([[0.0, -jnp.inf, 1.0, -jnp.inf, -200.0]])
    for text in WRITTEN:
        for pair, gauge in itertools.product(((first, second), (second, first)), gauges(text)):
            parts = contributions(text, *pair, gauge=gauge)
            assert not np.isnan(parts).any()
            assert parts[0, 3] < 1e-30
            tolerance = float((parts == 0).all())
            assert_allclose(shares(parts).sum(), 1, rtol=1e-5, atol=tolerance)


def test_shares_sum_to_1_and_to_0_where_there_is_nothing():
    parts = jnp.array([[0.0, 0, 0], [1, -2, 1], [jnp.inf, -jnp.inf, 1], [1, 3e38, -3e38]])
    expected = [[0, 0, 0], [0.25, 0.5, 0.25], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert_allclose(shares(parts), expected, atol=1e-30)
    assert_allclose(shares(TEACHER).sum(-1), 1, rtol=1e-6)
    assert_allclose(shares(np.array([1, -2, 1])), [0.25, 0.5, 0.25])


def test_top_movers_are_the_largest_and_ties_go_by_class():
    parts = jnp.asarray(RNG.integers(-4, 5, size=(6, 3, 20)), jnp.float32)
    movers = jax.jit(lambda parts: top_movers(parts, 7))(parts)
    expected = np.argsort(-np.abs(parts), axis=-1, kind="stable")[..., :7]
    assert_array_equal(movers.classes, expected)
    assert_array_equal(movers.parts, np.take_along_axis(np.asarray(parts), expected, -1))
    for k in (0, 21):
        message = f"`k` must be from 1 to the number of classes, 20, got {k}"
        with pytest.raises(ValueError, match=message):
            top_movers(parts, k)


def test_the_posts_numbers():
    pair = jnp.log(Q), jnp.log(P)
    parts = {text: contributions(text, *pair, gauge="raw") for text in ("ce", "kl")}
    assert_allclose(parts["ce"], -P * np.log(Q), rtol=1e-6)
    assert_allclose(parts["kl"], P * np.log(P / Q), rtol=1e-5)
    # As the post prints them; the logarithms of its first KL nearly cancel, to four digits.
    printed = {
        "ce": [0.020799191668629646, 0.039120230823755264, 0.06907755136489868],
        "kl": [0.0010005577933043242, -0.006931471638381481, 0.02302584983408451],
    }
    assert_allclose(parts["ce"], printed["ce"], rtol=1e-5)
    assert_allclose(parts["kl"], printed["kl"], rtol=1e-4)
    for text in ("ce", "kl"):
        gradient = contributions(text, *pair, gauge="gradient")
        assert_allclose(gradient, Q - P, atol=1e-7)


WITHOUT_PARTS = {
    "`gauge` must be one of raw, fixed, gradient, got 'free'": ("kl", "free"),
    "`alpha_divergence` has no parts in the gauge raw; use fixed or gradient": ("alpha", "raw"),
    "`negative_log_acceptance` has no parts in the gauge fixed": ("kl + nla", "fixed"),
    "`ce_data` needs `labels`": ("ce_data", "gradient"),
    "unknown loss `klx`": ("klx", "fixed"),
}


@pytest.mark.parametrize("message", WITHOUT_PARTS)
def test_losses_without_parts_are_refused(message):
    text, gauge = WITHOUT_PARTS[message]
    with pytest.raises(ValueError, match=message):
        contributions(text, STUDENT, TEACHER, gauge=gauge)


def test_by_rank_is_what_a_loop_over_the_ranks_gives():
    bins = contributions_by_rank.rank_bins(12)
    assert bins.tolist() == [[k, k] for k in range(1, 9)] + [[9, 12]]
    assert contributions_by_rank.rank_bins(3).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert contributions_by_rank.rank_bins(40)[-3:].tolist() == [[9, 16], [17, 32], [33, 40]]
    tied = TEACHER.at[:, 4].set(TEACHER[:, 2])
    order, places = contributions_by_rank.rank(tied, LABELS)
    sides = (jnp.take_along_axis(side, order, axis=-1) for side in (STUDENT, tied))
    binned = contributions_by_rank.by_rank(("rkl", "ce_data"), *sides, places)
    keys = {("rkl", "fixed"), ("rkl", "gradient"), ("ce_data", "gradient")}
    assert binned.keys() == {contributions_by_rank.TEACHER, *keys}
    for loss, gauge in keys:
        parts = np.asarray(contributions(loss, STUDENT, tied, gauge=gauge, labels=LABELS))
        expected = _by_rank(parts, np.asarray(tied), bins)
        assert_allclose(binned[loss, gauge], expected, rtol=1e-5, atol=1e-6)


def _by_rank(parts, teacher_logits, bins):
    """Returns shares and parts [N, 2, B] by a loop."""
    sums = np.zeros((len(parts), 2, len(bins)))
    for n, row in enumerate(parts):
        by_rank = sorted(range(len(row)), key=lambda c, n=n: (-teacher_logits[n, c], c))
        for b, (low, high) in enumerate(bins):
            for c in by_rank[low - 1 : high]:
                sums[n, :, b] += abs(row[c]) / np.abs(row).sum(), row[c]
    return sums


def test_the_command_prints_the_posts_table_and_draws_it(tmp_path):
    printed = runs.succeed(
        "contributions", "--p=.98,.01,.01", "--q=.979,.02,.001", f"--output={tmp_path}"
    )
    rows = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert [row[3:] for row in rows] == [
        ["0.020799", "16.12%", "0.001001", "3.23%", "-0.001000", "-0.001000"],
        ["0.039120", "30.33%", "-0.006931", "22.39%", "0.010000", "0.010000"],
        ["0.069078", "53.55%", "0.023026", "74.38%", "-0.009000", "-0.009000"],
    ]
    assert "ce and kl: shares up to 20.8 points apart, one and the same gradient" in printed
    table = pd.read_csv(tmp_path / "contributions.csv")
    assert list(zip(table["loss"], table["gauge"], strict=True))[::3] == [
        (loss, gauge) for loss in ("ce", "kl") for gauge in gauges(loss)
    ]
    assert (tmp_path / "contributions.png").stat().st_size > 10_000


REFUSED = {
    "--p=.5,.4 --q=.5,.5": "`--p` must sum to 1, got .5,.4 with sum 0.9",
    "--p=.5,.5 --q=1,0,0": "`--p` and `--q` must have as many classes, got 2 and 3",
    "--p=.5,.5 --q=.5,x": "`--q` must list numbers separated by commas, got .5,x",
    "--p=1.5,-.5 --q=.5,.5": "`--p` must have no negative or missing probability",
    "--p=nan,1 --q=.5,.5": "`--p` must have no negative or missing probability",
    "--p=.5,.5": "`--q` must list probabilities",
    "--p=.5,.5 --q=1,0 --losses=klx": "unknown loss `klx`",
    "--p=.5,.5 --q=1,0 --losses=ce_data": "`ce_data` is of data labels",
    "--p=.5,.5 --q=1,0 --losses=kl,ce_top_k": "`k` of `ce_top_k` must be a whole number from 1 to",
    "--p=.5,.5 --q=1,0 --student=ce": "--student is of a run",
    "--p=.5,.5 --q=1,0 --workdir=runs/x": "give --p and --q, or --workdir, not both",
    "--workdir=nowhere": "nowhere is not the folder of a run",
}


def test_bad_input_is_refused_by_name(tmp_path):
    images = [f"--workdir={commands.of_images(tmp_path / 'images')}"]
    arguments = [*(text.split() for text in REFUSED), [], images]
    *ended, bare, of_text = commands.many("contributions.__main__", arguments)
    runs.check_refusal(of_text, commands.OF_TEXT)
    for process, message in zip(ended, REFUSED.values(), strict=True):
        runs.check_refusal(process, "error: " + message)
    runs.check_refusal(bare, "give two distributions, such as --p=.98,.01,.01", "or a run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns a run whose models were saved untrained, as contributions need no training."""
    folder = tmp_path_factory.mktemp("contributions")
    return commands.untrained(folder / "run", runs.write_texts(folder / "texts"))


def test_the_command_shows_a_run_by_rank(finished, tmp_path):
    flags = [f"--workdir={finished}", f"--output={tmp_path}"]
    printed = runs.succeed("contributions", *flags, "--losses=ce,kl,nla,ce_data")
    assert "of its gradient on the teacher's top class" in printed
    assert (tmp_path / "contributions_by_rank.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "contributions_by_rank.csv")
    of = dict(list(table.groupby(["loss", "gauge"])))
    assert of.keys() == {
        ("teacher", "probability"), ("ce", "fixed"), ("kl", "fixed"),
        ("ce", "gradient"), ("kl", "gradient"), ("nla", "gradient"), ("ce_data", "gradient"),
    }  # fmt: skip
    for rows in of.values():
        assert_allclose(rows["share"].sum(), 1, rtol=1e-5)
        assert rows["share"].between(rows["share_low"], rows["share_high"]).all()
    for loss in ("ce", "kl"):
        for column, expected in zip(("share", "part"), _by_hand(finished), strict=True):
            assert_allclose(of[loss, "gradient"][column], expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="has no students of loss 'rkl'; it has ce, kl, tv"):
        contributions_by_rank.measure(
            Workdir(finished), losses=["rkl"], student=contributions_by_rank.OWN
        )


def _by_hand(folder):
    """Averages share and part of cross-entropy's gradient over seeds and positions, [2, B]."""
    run = Workdir(folder)
    spec, corpus = run.spec(), run_data.TextData.load(run)
    target = teacher.restore(spec.teacher, run, corpus.tokenizer.vocab_size)
    context = contexts.make("corpus", spec.evaluation, corpus, target)
    student = students.restore_one(str(folder), loss="ce", seed=spec.seed)
    shared = jax.jit(students.teacher_forward(student, target))(target.params, context.inputs)
    counted, size = context.weights > 0, corpus.tokenizer.vocab_size
    bins = contributions_by_rank.rank_bins(size)
    means = []
    for seed in spec.seeds:
        student = students.restore_one(str(folder), loss="ce", seed=seed)
        forward = jax.jit(lambda inputs, shared, student=student: student(inputs, shared))
        logits = forward(context.inputs, shared)
        gradient = np.asarray(jax.nn.softmax(logits) - jax.nn.softmax(shared.logits))
        means.append(_by_rank(gradient[counted], np.asarray(shared.logits)[counted], bins).mean(0))
    return np.mean(means, axis=0)
