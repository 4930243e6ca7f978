"""A loss split into its classes: gauges, and the command that prints the post's table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiv
from jaxdiv.contributions import contributions
from tests import runs

RNG = np.random.default_rng(4)
TEACHER = jnp.asarray(RNG.normal(size=(5, 12)), jnp.float32)
STUDENT = TEACHER + jnp.asarray(RNG.normal(size=(5, 12)), jnp.float32)
P, Q = np.array([0.98, 0.01, 0.01]), np.array([0.979, 0.02, 0.001])
SPLIT = [
    "ce",
    "kl",
    "rkl",
    "jeffreys",
    "jsd",
    "jsd(beta=0.2)",
    "tv",
    "skl",
    "srkl",
    "alpha",
    "hellinger",
    "0.5*kl + 2*tv",
]


@pytest.mark.parametrize("text", SPLIT)
def test_parts_sum_to_the_loss_and_the_gradient_is_its_gradient(text):
    fixed = contributions(text, STUDENT, TEACHER)
    np.testing.assert_allclose(fixed.sum(-1), jaxdiv.get(text)(STUDENT, TEACHER), rtol=1e-6)
    assert (fixed >= 0).all()
    expected = jax.grad(lambda s: jaxdiv.get(text)(s, TEACHER).sum())(STUDENT)
    np.testing.assert_allclose(contributions(text, STUDENT, TEACHER, gauge="gradient"), expected, rtol=1e-6)


@pytest.mark.parametrize("text", ["ce", "kl"])
def test_gauges_differ_by_a_multiple_of_the_excess(text):
    p, q = jax.nn.softmax(TEACHER), jax.nn.softmax(STUDENT)
    moved = contributions(text, STUDENT, TEACHER) - contributions(text, STUDENT, TEACHER, gauge="raw")
    np.testing.assert_allclose(moved, q - p, atol=1e-6)


def test_the_posts_numbers():
    parts = {text: contributions(text, jnp.log(Q), jnp.log(P), gauge="raw") for text in ("ce", "kl")}
    np.testing.assert_allclose(parts["ce"], -P * np.log(Q), rtol=1e-6)
    np.testing.assert_allclose(parts["kl"], P * np.log(P / Q), rtol=1e-4)
    for text in ("ce", "kl"):
        gradient = contributions(text, jnp.log(Q), jnp.log(P), gauge="gradient")
        np.testing.assert_allclose(gradient, Q - P, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "gauge", "message"),
    [
        ("kl", "free", r"`gauge` must be one of raw, fixed, gradient, got 'free'"),
        ("tv", "raw", r"`total_variation` has no parts in the gauge raw, only cross_entropy and forward_kl"),
        ("nla", "fixed", r"`negative_log_acceptance` is not a sum over classes"),
        ("ce_data", "gradient", r"`cross_entropy_data` is not a sum over classes"),
        ("klx", "fixed", r"unknown loss `klx`"),
    ],
)
def test_what_has_no_parts_is_refused_by_name(text, gauge, message):
    with pytest.raises(ValueError, match=message):
        contributions(text, STUDENT, TEACHER, gauge=gauge)


def test_the_command_prints_the_posts_table_to_its_digits():
    printed = runs.succeed("contributions", "--p=.98,.01,.01", "--q=.979,.02,.001")
    rows = [line.replace("│", " ").split() for line in printed.splitlines() if line.startswith("│")]
    assert [row[3:] for row in rows[:3]] == [
        ["0.020799", "16.12%", "0.0010006", "3.23%", "-0.001000", "-0.001000"],
        ["0.039120", "30.33%", "-0.0069315", "22.39%", "0.010000", "0.010000"],
        ["0.069078", "53.55%", "0.0230258", "74.38%", "-0.009000", "-0.009000"],
    ]


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (".5,.4", ".5,.5", "`--p` must sum to 1, got .5,.4 with sum 0.9"),
        (".5,.5", "1,0,0", "as many classes, got 2 and 3"),
        (".5,.5", ".5,x", "`--q` must list numbers by commas, got .5,x"),
        ("1.5,-.5", ".5,.5", "`--p` must have no negative or missing probability"),
        ("nan,1", ".5,.5", "`--p` must have no negative or missing probability"),
    ],
)
def test_what_is_no_distribution_is_one_line_and_exit_code_2(p, q, message):
    runs.check_refusal(runs.run("contributions", f"--p={p}", f"--q={q}"), message)
