"""Token sums and means: masks, micro-batches, nothing left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxdiv import reductions

VALUES = jnp.asarray(np.random.default_rng(3).normal(size=(6, 5)), jnp.float32)
WEIGHTS = jnp.asarray(np.arange(30).reshape(6, 5) % 3 / 2, jnp.float32)


def test_the_mean_is_the_weighted_mean():
    total, count = reductions.token_sum(VALUES, WEIGHTS)
    assert_allclose(total, np.vdot(VALUES, WEIGHTS), rtol=1e-6)
    assert_allclose(count, np.sum(WEIGHTS), rtol=1e-6)
    assert_allclose(reductions.token_mean(VALUES, WEIGHTS), total / count, rtol=1e-6)
    gradient = jax.grad(reductions.token_mean)(VALUES, WEIGHTS)
    assert_allclose(gradient, WEIGHTS / count, rtol=1e-6)


def test_cut_into_micro_batches_the_sums_add_up():
    whole = reductions.token_sum(VALUES, WEIGHTS)
    parts = [reductions.token_sum(VALUES[cut], WEIGHTS[cut]) for cut in (slice(0, 1), slice(1, 6))]
    assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weight_0_counts_nothing_whatever_its_value(poison):
    def mean(scale):
        return reductions.token_mean(jnp.where(WEIGHTS == 0, poison, VALUES) * scale, WEIGHTS)

    assert_allclose(mean(1.0), reductions.token_mean(VALUES, WEIGHTS), rtol=1e-6)
    poisoned = jnp.where(WEIGHTS == 0, poison, VALUES)
    gradient = jax.grad(reductions.token_mean)(poisoned, WEIGHTS)
    assert_array_equal(gradient, jax.grad(reductions.token_mean)(VALUES, WEIGHTS))


def test_everything_masked_gives_0_and_a_zero_gradient():
    both = jax.value_and_grad(reductions.token_mean)
    value, gradient = both(VALUES * jnp.nan, jnp.zeros_like(WEIGHTS))
    assert value == 0
    assert_array_equal(gradient, 0)


def test_accumulation_is_in_float32_and_weights_are_constants():
    ones = jnp.ones(3000, jnp.bfloat16)
    total, count = reductions.token_sum(ones, ones)
    assert (total.dtype, float(total), float(count)) == (jnp.float32, 3000.0, 3000.0)
    assert_array_equal(jax.grad(reductions.token_mean, argnums=1)(VALUES, WEIGHTS), 0)
    assert reductions.token_mean(VALUES, WEIGHTS != 0).dtype == jnp.float32


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"values' shape \(6, 5\), got \(5,\)"):
        reductions.token_sum(VALUES, WEIGHTS[0])


def test_a_sequence_mean_weighs_short_texts_as_long_ones():
    weights = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    values = np.where(weights == 0, np.nan, [[1, 2, 3, 6], [7, 1, 1, 1], [5, 5, 5, 5]])
    values = jnp.asarray(values, jnp.float32)
    assert_allclose(reductions.sequence_mean(values, weights), (3 + 7) / 2)
    parts = [reductions.sequence_sum(values[i : i + 1], weights[i : i + 1]) for i in range(3)]
    assert_allclose(reductions.mean(*map(sum, zip(*parts, strict=True))), (3 + 7) / 2)
    gradient = jax.grad(lambda v: reductions.sequence_mean(v, weights))(values)
    assert_allclose(gradient, weights * np.array([[1 / 8], [1 / 2], [0]]))
    none = jax.value_and_grad(lambda v: reductions.sequence_mean(v, 0 * weights))(values)
    assert_array_equal(none[0], 0)
    assert_array_equal(none[1], 0)


def test_early_positions_of_a_draft_can_count_more():
    weights = reductions.position_weights(3, 0.8)
    assert_allclose(weights, [1, 0.8, 0.64], rtol=1e-6)
    values = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, jnp.inf]])
    mask = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]) * weights[None]
    expected = (1 + 1.6 + 1.92 + 4 + 4) / (1.8 + 2.44)
    assert_allclose(reductions.token_mean(values, mask), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`decay` in \(0, 1\], got 3 and 1.5"):
        reductions.position_weights(3, 1.5)
