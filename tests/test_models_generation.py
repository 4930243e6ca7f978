"""Generation with a cache against plain recomputation, and its samples against the exact
distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jaxdiv import models


@functools.cache
def make_decoder(vocab_size):
    config = {
        "depth": 2,
        "width": 16,
        "heads": 2,
        "kv_heads": 1,
        "mlp_width": 24,
        "rope_base": 100.0,
    }
    config |= {"padded_vocabulary": 0, "norm_epsilon": 1e-5, "dtype": "float32"}
    return nnx.jit(lambda: models.build_teacher(config, vocab_size, nnx.Rngs(0)))()


def test_greedy_equals_uncached_recomputation():
    decoder = make_decoder(50)
    prompts = jax.random.randint(jax.random.key(1), (4, 5), 0, 50)
    text = models.generate(
        decoder, np.asarray(prompts), length=12, temperature=0.0, key=jax.random.key(0)
    )
    assert text.shape == (4, 17)
    assert text.dtype == jnp.int32
    np.testing.assert_array_equal(text[:, :5], prompts)
    # A token that is the argmax given the text before it, at every position, is the greedy text.
    np.testing.assert_array_equal(text[:, 5:], decoder(text).logits[:, 4:-1].argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_follow_the_exact_joint_distribution(temperature):
    vocab_size, draws = 4, 20_000
    decoder = make_decoder(vocab_size)
    prompt = jnp.array([[2, 1]])
    text = models.generate(
        decoder,
        jnp.repeat(prompt, draws, axis=0),
        length=3,
        temperature=temperature,
        key=jax.random.key(5),
    )
    every = jnp.stack(jnp.meshgrid(*[jnp.arange(vocab_size)] * 3, indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    whole = jnp.concatenate([jnp.repeat(prompt, len(every), axis=0), every], axis=1)
    chances = np.asarray(
        jax.nn.softmax(decoder(whole).logits[:, 1:-1] / temperature, axis=-1), np.float64
    )
    joint = np.take_along_axis(chances, np.asarray(every)[..., None], axis=-1)[..., 0].prod(-1)
    seen = np.bincount(np.asarray(text[:, 2:]) @ [16, 4, 1], minlength=64)
    assert stats.chisquare(seen, joint / joint.sum() * draws).pvalue > 1e-3


def test_a_row_depends_on_the_key_and_itself_alone():
    decoder = make_decoder(50)
    prompts = jax.random.randint(jax.random.key(1), (4, 5), 0, 50)

    def run(prompts, seed):
        return models.generate(
            decoder, prompts, length=8, temperature=1.0, key=jax.random.key(seed)
        )

    first = run(prompts, 0)
    np.testing.assert_array_equal(first, run(prompts, 0))
    np.testing.assert_array_equal(first[1], run(prompts.at[0].set(7), 0)[1])
    assert not np.array_equal(first, run(prompts, 1))
    alike = run(jnp.repeat(prompts[:1], 4, axis=0), 0)
    assert len({tuple(row) for row in alike.tolist()}) == 4


def test_one_token_is_a_prefix_of_many():
    decoder = make_decoder(50)
    prompts = jnp.array([[3]])
    one, many = (
        models.generate(decoder, prompts, length=n, temperature=1.0, key=jax.random.key(0))
        for n in (1, 6)
    )
    np.testing.assert_array_equal(one, many[:, :2])


def test_impossible_requests_are_refused():
    decoder, key = make_decoder(50), jax.random.key(0)
    with pytest.raises(ValueError, match="at least 1 token, got 1 and 0"):
        models.generate(decoder, jnp.array([[3]]), length=0, temperature=1.0, key=key)
    with pytest.raises(ValueError, match="at least 1 token, got 0 and 2"):
        models.generate(decoder, jnp.zeros((1, 0), jnp.int32), length=2, temperature=1.0, key=key)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`temperature` must be finite and at least 0"):
            models.generate(decoder, jnp.array([[3]]), length=2, temperature=temperature, key=key)
