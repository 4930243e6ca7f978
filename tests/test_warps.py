"""Temperature: against SciPy in float64, and at its edges."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdiv import warps

LOGITS = np.random.default_rng(0).normal(scale=4, size=(6, 37)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 20.0])
def test_agrees_with_scipy(temperature):
    expected = special.softmax(LOGITS.astype(np.float64) / temperature, axis=-1)
    np.testing.assert_allclose(warps.probabilities(LOGITS, temperature=temperature), expected, rtol=1e-5)


def test_greedy_is_the_limit_of_small_temperatures():
    cold = warps.probabilities(LOGITS * 1e4, temperature=1e-35)
    np.testing.assert_array_equal(warps.probabilities(LOGITS, temperature=0), cold)


def test_greedy_takes_the_first_of_equals():
    np.testing.assert_array_equal(warps.probabilities(jnp.array([1.0, 3.0, 3.0]), temperature=0), [0, 1, 0])


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0])
def test_classes_that_do_not_exist_get_nothing(temperature):
    row = warps.probabilities(jnp.array([-jnp.inf, 0.0, 1e4, -1e4]), temperature=temperature)
    np.testing.assert_array_equal(row, [0, 0, 1, 0])


def test_low_precision_logits_give_float32():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    row = warps.probabilities(logits, temperature=0.7)
    assert row.dtype == jnp.float32
    np.testing.assert_allclose(row, special.softmax(np.asarray(logits, np.float64) / 0.7, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be finite and at least 0, got .*; 0 is greedy"):
        warps.probabilities(LOGITS, temperature=temperature)
