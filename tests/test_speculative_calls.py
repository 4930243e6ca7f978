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
CHANCES = {
    "sampling": acceptance.sampling_given,
    "greedy_draft": lambda q, _, tokens: acceptance.greedy_given(q, tokens),
    "exact_match": lambda q, _, tokens: jnp.take_along_axis(
        jax.nn.softmax(q), tokens[..., None], axis=-1
    )[..., 0],
}


def decode(draft, *, seed, **options):
    options |= {"max_tokens": TOKENS, "gamma": GAMMA, "seeds": np.arange(TEXTS) + seed}
    return speculative.decode(cases.target(V), draft, [PROMPT] * TEXTS, **options)


@pytest.fixture(scope="module")
def plain_texts():
    """The target's, of other seeds than those that are decoded with a draft."""
    return decode(None, seed=10**6)


@jax.jit
def logits(whole):
    output = cases.target(V)(whole, exit_layer=1)
    both = (cases.student("kangaroo", V)(whole, output), output.logits)
    return [x[:, len(PROMPT) - 1 : -1] for x in both]


def expected_calls(decoded, rule, eta):
    """Target calls of each text, by one pass over it."""
    tokens = jnp.asarray(cases.together(decoded))
    q, p = logits(jnp.concatenate([jnp.tile(jnp.array(PROMPT), (TEXTS, 1)), tokens], axis=1))
    sure = jnp.max(jax.nn.softmax(q), axis=-1) >= eta
    return acceptance.calls(CHANCES[rule](q, p, tokens), TOKENS, gamma=GAMMA, sure=sure)


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
def test_target_calls_agree_with_the_recursion(rule, eta, plain_texts):
    decoded = decode(cases.student("kangaroo", V), seed=0, rule=rule, eta=eta)
    calls = decoded.counts.target_calls
    assert 1.2 < decoded.tokens_per_call < GAMMA
    assert abs(two_sample_z(calls, expected_calls(plain_texts, rule, eta))) < 3.5
    assert abs(z_score(calls, expected_calls(decoded, rule, eta))) < 3.5
    # These texts are enough to tell rules apart.
    other = {"sampling": "greedy_draft"}.get(rule, "sampling")
    assert abs(z_score(calls, expected_calls(decoded, other, eta))) > 5
    assert not eta or abs(z_score(calls, expected_calls(decoded, rule, 0.0))) > 5
