"""After any number of roll-backs the caches hold what reading the accepted text afresh would put
there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiv import speculative
from jaxdiv.speculative import decode_batch
from tests import speculative_cases as cases

V = 20
CHAIN = {"gamma": 3, "eta": 0.25}
TREE = {"tree": speculative.parse("0,1,2,00,01,10,100,101")}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("kangaroo", CHAIN),
        ("decoder", TREE),
        pytest.param("kangaroo", TREE, marks=pytest.mark.slow),
        pytest.param("decoder", CHAIN, marks=pytest.mark.slow),
    ],
)
def test_caches_are_those_of_the_text(kind, options, monkeypatch):
    monkeypatch.setattr(decode_batch, "_decoded", lambda state, lengths: state)
    target, student, prompts = cases.target(V, 16), cases.student(kind, V, 16), cases.prompts(12, V)
    max_tokens, seeds = 9 + np.arange(12), range(12)
    state = speculative.decode(
        target, student, prompts, max_tokens=max_tokens, seeds=seeds, **options
    )
    assert 0 < state.counts.accepted.sum() < state.counts.drafted.sum()
    texts = state.texts
    np.testing.assert_array_equal(texts.length, max_tokens + [len(prompt) for prompt in prompts])
    fresh = _read(target, student, texts.tokens)
    pairs = zip(
        *map(jax.tree.leaves, ((texts.target_cache, texts.draft_cache), fresh)), strict=True
    )
    for arrays in pairs:
        decoded, expected = (x.reshape(len(prompts), -1, *x.shape[1:]) for x in arrays)
        for row, length in enumerate(texts.length):
            np.testing.assert_allclose(
                decoded[row, :, : length - 1], expected[row, :, : length - 1], rtol=1e-4, atol=1e-5
            )


@nnx.jit
def _read(target, student, tokens):
    """Caches of target and student after one pass over `tokens`."""
    where = {"positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)}
    target_cache, draft_cache = (model.init_cache(*tokens.shape) for model in (target, student))
    exit_layer, hidden = student.exit_layer or 0, target.embed(tokens)
    hidden, target_cache = target.run_layers(hidden, 0, exit_layer, cache=target_cache, **where)
    _, draft_cache = student.extend(tokens, hidden, draft_cache, **where)
    _, target_cache = target.run_layers(
        hidden, exit_layer, target.depth, cache=target_cache, **where
    )
    return target_cache, draft_cache
