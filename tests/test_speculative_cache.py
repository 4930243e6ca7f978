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
    wanted = 9 + np.arange(12)
    state = speculative.decode(
        target, student, prompts, max_tokens=wanted, seeds=range(12), **options
    )
    assert 0 < state.counts.accepted.sum() < state.counts.drafted.sum()
    np.testing.assert_array_equal(state.texts.length, wanted + [len(prompt) for prompt in prompts])
    fresh = _read(target, student, state.texts.tokens)
    for decoded, expected in zip(
        (state.texts.target_cache, state.texts.draft_cache), fresh, strict=True
    ):
        for one, other in zip(jax.tree.leaves(decoded), jax.tree.leaves(expected), strict=True):
            one, other = (x.reshape(len(prompts), -1, *x.shape[1:]) for x in (one, other))
            for row, length in enumerate(state.texts.length):
                held, wanted_here = one[row, :, : length - 1], other[row, :, : length - 1]
                np.testing.assert_allclose(held, wanted_here, rtol=1e-4, atol=1e-5)


def _read(target, student, tokens):
    """Caches of target and student after one pass over `tokens`."""

    @nnx.jit
    def read(target, student):
        where = {"positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)}
        target_cache, draft_cache = (model.init_cache(*tokens.shape) for model in (target, student))
        exit_layer = student.exit_layer or 0
        hidden, target_cache = target.run_layers(
            target.embed(tokens), 0, exit_layer, cache=target_cache, **where
        )
        _, draft_cache = student.extend(tokens, hidden, draft_cache, **where)
        _, target_cache = target.run_layers(
            hidden, exit_layer, target.depth, cache=target_cache, **where
        )
        return target_cache, draft_cache

    return read(target, student)
