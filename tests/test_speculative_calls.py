"""Target calls of decoded texts against the renewal recursion of `jaxdiv.acceptance`, which decodes
nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import acceptance, speculative
from tests import speculative_cases as cases
from tests.test_acceptance import two_sample_z, z_score

V, TEXTS, TOKENS, GAMMA = 12, 2000, 40, 3
PROMPT = (3, 1, 4)


def decode(draft, *, seed, **options):
    seeds = np.arange(TEXTS) + seed
    return speculative.decode(
        cases.target(V),
        draft,
        [PROMPT] * TEXTS,
        max_tokens=TOKENS,
        gamma=GAMMA,
        seeds=seeds,
        **options,
    )


@pytest.fixture(scope="module")
def own_texts():
    """The target's, of other seeds than those that are decoded with a draft."""
    return decode(None, seed=10**6)


def expected_calls(decoded, rule, eta):
    """Of each text, by one pass over it."""
    tokens, start = jnp.asarray(cases.together(decoded)), len(PROMPT)

    @jax.jit
    def logits(whole):
        output = cases.target(V)(whole, exit_layer=1)
        return cases.student("kangaroo", V)(whole, output)[:, start - 1 : -1], output.logits[
            :, start - 1 : -1
        ]

    q, p = logits(jnp.concatenate([jnp.tile(jnp.array(PROMPT), (TEXTS, 1)), tokens], axis=1))
    chance = {
        "sampling": lambda: acceptance.sampling_given(q, p, tokens),
        "greedy_draft": lambda: acceptance.greedy_given(q, tokens),
        "exact_match": lambda: jnp.take_along_axis(jax.nn.softmax(q), tokens[..., None], axis=-1)[
            ..., 0
        ],
    }[rule]()
    sure = jnp.max(jax.nn.softmax(q), axis=-1) >= eta
    return acceptance.calls(chance, TOKENS, gamma=GAMMA, sure=sure)


@pytest.mark.parametrize(
    ("rule", "eta"),
    [
        ("sampling", 0.0),
        ("sampling", 0.4),
        ("greedy_draft", 0.0),
        pytest.param("exact_match", 0.0, marks=pytest.mark.slow),
        pytest.param("greedy_draft", 0.4, marks=pytest.mark.slow),
    ],
)
def test_target_calls_agree_with_the_recursion(rule, eta, own_texts):
    decoded = decode(cases.student("kangaroo", V), seed=0, rule=rule, eta=eta)
    calls = decoded.counts.target_calls
    assert 1.2 < decoded.tokens_per_call < GAMMA
    assert abs(two_sample_z(calls, expected_calls(own_texts, rule, eta))) < 3.5
    assert abs(z_score(calls, expected_calls(decoded, rule, eta))) < 3.5
    other = {"sampling": "greedy_draft"}.get(rule, "sampling")
    assert (
        abs(z_score(calls, expected_calls(decoded, other, eta))) > 5
    )  # so few texts do tell rules apart
    assert not eta or abs(z_score(calls, expected_calls(decoded, rule, 0.0))) > 5
