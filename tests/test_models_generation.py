"""Generation with a cache against plain recomputation, and its samples against the exact
distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import models
from tests import speculative_cases as cases

V, PROMPTS = 50, jax.random.randint(jax.random.key(1), (4, 5), 0, 50)


def generate(prompts=PROMPTS, *, length=8, temperature=1.0, seed=0):
    key = jax.random.key(seed)
    return models.generate(
        cases.target(V, 16), prompts, length=length, temperature=temperature, key=key
    )


def test_greedy_equals_uncached_recomputation():
    text = generate(np.asarray(PROMPTS), length=12, temperature=0.0)
    assert (text.shape, text.dtype) == ((4, 17), jnp.int32)
    np.testing.assert_array_equal(text[:, :5], PROMPTS)
    # A token that is the argmax given the text before it, at every position, is the greedy text.
    logits = jax.jit(lambda tokens: cases.target(V, 16)(tokens).logits)(text)
    np.testing.assert_array_equal(text[:, 5:], logits[:, 4:-1].argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_follow_the_exact_joint_distribution(temperature):
    prompt, key = jnp.array([2, 1]), jax.random.key(5)
    text = models.generate(
        cases.target(), jnp.tile(prompt, (20_000, 1)), length=3, temperature=temperature, key=key
    )
    chances = cases.joint(cases.target(), prompt, 3, temperature=temperature)
    assert cases.p_value(cases.cells(np.asarray(text[:, 2:]), 4), chances) > 1e-3


def test_a_row_depends_on_the_key_and_itself_alone():
    first = generate()
    np.testing.assert_array_equal(first, generate())
    np.testing.assert_array_equal(first[1], generate(PROMPTS.at[0].set(7))[1])
    assert not np.array_equal(first, generate(seed=1))
    alike = generate(jnp.repeat(PROMPTS[:1], 4, axis=0))
    assert len({tuple(row) for row in alike.tolist()}) == 4


def test_one_token_is_a_prefix_of_many():
    np.testing.assert_array_equal(generate(length=1), generate()[:, :6])


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="at least 1 token, got 5 and 0"):
        generate(length=0)
    with pytest.raises(ValueError, match="at least 1 token, got 0 and 8"):
        generate(jnp.zeros((1, 0), jnp.int32))
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`temperature` must be finite and at least 0"):
            generate(temperature=temperature)
