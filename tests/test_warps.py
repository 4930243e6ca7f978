"""Temperature, top-k and top-p against float64, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

from jaxdiv import warps
from tests import speculative_cases as cases

LOGITS = np.random.default_rng(0).normal(scale=4, size=(6, 37)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 20.0])
def test_agrees_with_scipy(temperature):
    expected = special.softmax(LOGITS.astype(np.float64) / temperature, axis=-1)
    row = warps.probabilities(LOGITS, temperature=temperature)
    assert_allclose(row, expected, rtol=1e-5)


def test_greedy_is_the_limit_of_small_temperatures():
    cold = warps.probabilities(LOGITS * 1e4, temperature=1e-35)
    assert_array_equal(warps.probabilities(LOGITS, temperature=0), cold)


def test_greedy_takes_the_first_of_equals():
    row = warps.probabilities(jnp.array([1.0, 3.0, 3.0]), temperature=0)
    assert_array_equal(row, [0, 1, 0])


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0])
def test_classes_that_do_not_exist_get_nothing(temperature):
    row = warps.probabilities(jnp.array([-jnp.inf, 0.0, 1e4, -1e4]), temperature=temperature)
    assert_array_equal(row, [0, 0, 1, 0])


def test_low_precision_logits_give_float32():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    row = warps.probabilities(logits, temperature=0.7)
    assert row.dtype == jnp.float32
    expected = special.softmax(np.asarray(logits, np.float64) / 0.7, axis=-1)
    assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_bad_temperature_is_refused(temperature):
    message = r"`temperature` must be finite and at least 0, got .*; 0 is greedy"
    with pytest.raises(ValueError, match=message):
        warps.probabilities(LOGITS, temperature=temperature)


@pytest.mark.parametrize("top_k", [None, 1, 5, 37, 100])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.95, 1.0])
def test_cuts_agree_with_numpy(top_k, top_p):
    warped = warps.warp(LOGITS, warps.Warp(1.5, top_k, top_p))
    expected = cases.warped(LOGITS, temperature=1.5, top_k=top_k, top_p=top_p)
    assert_allclose(special.softmax(warped, axis=-1), expected, rtol=1e-5)
    assert_array_equal(np.isfinite(warped), expected > 0)


def test_rows_are_warped_each_in_their_way():
    ways = {"temperature": [0.0, 0.3, 1.0, 1.0, 2.0, 0.0], "top_k": [9, 37, 1, 4, 6, 2]}
    ways["top_p"] = [0.5, 0.9, 1.0, 1.0, 0.3, 1.0]
    warped = warps.warp(LOGITS, warps.Warp(*(jnp.array(ways[name]) for name in warps.Warp._fields)))
    for row, logits in enumerate(LOGITS):
        alone = warps.warp(logits, warps.Warp(*(ways[name][row] for name in warps.Warp._fields)))
        assert_allclose(warped[row], alone, rtol=1e-6)
    # With a batch of nodes, one value for all the nodes of a sequence.
    temperatures = jnp.array(ways["temperature"])
    nodes = warps.warp(jnp.asarray(LOGITS)[:, None], warps.Warp(temperatures[:, None]))
    expected = warps.warp(LOGITS, warps.Warp(temperatures))
    assert_allclose(nodes[:, 0], expected, rtol=1e-6)


def test_at_top_p_1_every_class_remains():
    """Tests classes that rounding puts beyond 1."""
    logits = np.linspace(0, -80, 5000).astype(np.float32)
    assert np.isfinite(warps.warp(logits, warps.Warp(1.0, None, 1.0))).all()


@pytest.mark.parametrize(
    ("how", "remaining"),
    [
        ({"top_k": 1}, [1, 2]),
        ({"top_k": 3}, [1, 2, 3, 5]),
        ({"top_p": 0.3}, [1, 2]),
        ({"top_p": 0.85}, [1, 2, 3, 5]),
        ({"top_k": 3, "top_p": 0.3}, [1, 2]),
        ({"top_k": 6}, [0, 1, 2, 3, 5, 6]),
        ({"top_k": 9}, [0, 1, 2, 3, 5, 6]),
    ],
)
def test_ties_of_the_last_remain_and_missing_classes_do_not(how, remaining):
    logits = np.array([-1.0, 3.0, 3.0, 2.0, -np.inf, 2.0, 0.0])
    finite = np.isfinite(warps.warp(logits, warps.Warp(**how)))
    assert np.flatnonzero(finite).tolist() == remaining


def test_greedy_has_no_use_for_cuts():
    warped = warps.warp(LOGITS, warps.Warp(0.0, 3, 0.5))
    assert_array_equal(np.isfinite(warped).argmax(axis=-1), LOGITS.argmax(axis=-1))
    assert (np.isfinite(warped).sum(axis=-1) == 1).all()


@pytest.mark.parametrize(
    ("k", "p", "name"), [(0, None, "top_k"), (None, 0.0, "top_p"), (None, 1.5, "top_p")]
)
def test_bad_cuts_are_refused(k, p, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*; None keeps all"):
        warps.check_cuts(k, p)


def test_draws_follow_the_distribution():
    logits = jnp.asarray(LOGITS[0])
    warped = warps.warp(logits, warps.Warp(2.0, 8))
    keys = jax.random.split(jax.random.key(0), 50_000)
    drawn = jax.jit(jax.vmap(lambda key: warps.draw(key, warped)))(keys)
    assert cases.p_value(np.asarray(drawn), cases.warped(logits, temperature=2.0, top_k=8)) > 1e-3


def test_the_likeliest_class_stays_however_small_the_mass():
    logits = jnp.array([[0.0, 2.0, 1.0]])
    for top_p in (1e-50, 1e-6):
        finite = jnp.isfinite(warps.warp(logits, warps.Warp(top_p=top_p)))
        assert_array_equal(finite, [[False, True, False]])
