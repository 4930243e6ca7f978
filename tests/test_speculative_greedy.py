"""Decoding against plain decoding, token for token."""

import jax
import numpy as np
import pytest

from jaxdiv import models, speculative
from jaxdiv.speculative import rules
from tests import speculative_cases as cases

V, TEXTS, TOKENS = 50, 20, 40
TREE = speculative.parse("0,1,2,00,01,10,000,100")
ROWS = np.random.default_rng(1).integers(0, V, (TEXTS, 5))

# the draft, and options of the decoding
CASES = {
    "chain": ("kangaroo", {"gamma": 3}),
    "decoder": ("decoder", {"gamma": 1}),
    "tree": ("decoder", {"tree": TREE}),
    "lookup": (speculative.LOOKUP, {"gamma": 4}),
    "plain": (None, {}),
}
MORE = {
    "tree of the adapter": ("kangaroo", {"tree": TREE}),
    "lookup, typical": (speculative.LOOKUP, {"gamma": 2, "rule": "typical", "longest": 1}),
    **{rule: ("decoder", {"gamma": 3, "rule": rule}) for rule in rules.RULES},
    **{f"tree, {rule}": ("kangaroo", {"tree": TREE, "rule": rule}) for rule in rules.RULES},
}
MORE.pop("tree, sampling")  # "tree of the adapter"


def decode(kind, *, adversarial=False, **options):
    draft = cases.draft_of(kind, V, 16, adversarial=adversarial)
    return speculative.decode(cases.target(V, 16), draft, ROWS, max_tokens=TOKENS, **options)


def generate(temperature, key):
    return models.generate(
        cases.target(V, 16), ROWS, length=TOKENS, temperature=temperature, key=key
    )


@pytest.fixture(scope="module")
def greedy():
    """The target's own greedy text, in which no two logits are so close that rounding decides."""
    text = np.asarray(generate(0.0, jax.random.key(0)))
    logits = jax.jit(lambda tokens: cases.target(V, 16)(tokens).logits)(text)
    logits = np.sort(logits[:, ROWS.shape[1] - 1 : -1], axis=-1)
    assert (logits[..., -1] - logits[..., -2]).min() > 1e-4
    return text[:, ROWS.shape[1] :]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_greedy_text_is_the_targets(case, greedy):
    kind, options = (CASES | MORE)[case]
    np.testing.assert_array_equal(cases.together(decode(kind, temperature=0.0, **options)), greedy)


def test_greedy_text_does_not_depend_on_the_draft(greedy):
    """An adversarial draft, or one that stops early, costs only speed."""
    fast = decode("kangaroo", temperature=0.0, gamma=3)
    bad = decode("kangaroo", temperature=0.0, gamma=3, adversarial=True)
    unsure = decode("kangaroo", temperature=0.0, gamma=3, eta=0.3)
    for decoded in (bad, unsure):
        np.testing.assert_array_equal(cases.together(decoded), greedy)
    assert bad.tokens_per_call < fast.tokens_per_call
    assert unsure.counts.drafted.sum() < fast.counts.drafted.sum()
    assert unsure.counts.drafted[:, 1:].sum() > 0


WAYS = {
    "temperature": [0.0, 0.3, 1.0, 2.0] * 5,
    "top_k": [50] * 10 + [7] * 10,
    "top_p": [1.0, 0.8] * 10,
}


@pytest.fixture(scope="module")
def plain():
    return decode(None, **WAYS)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("decoder", {"rule": "exact_match", "gamma": 2}),
        ("kangaroo", {"rule": "coupled", "tree": TREE}),
        (speculative.LOOKUP, {"gamma": 4}),
        pytest.param("kangaroo", {"rule": "greedy_draft", "gamma": 3}, marks=pytest.mark.slow),
        pytest.param("decoder", {"rule": "greedy_draft", "tree": TREE}, marks=pytest.mark.slow),
        pytest.param("decoder", {"rule": "exact_match", "tree": TREE}, marks=pytest.mark.slow),
        pytest.param(
            "kangaroo", {"rule": "coupled", "gamma": 3, "eta": 0.3}, marks=pytest.mark.slow
        ),
    ],
)
def test_matching_rules_draw_the_plain_text(kind, options, plain):
    """At every temperature and cut the target's noise decides, the same with and without drafts."""
    decoded = decode(kind, **WAYS, **options)
    cases.assert_same(decoded, plain)
    assert decoded.counts.target_calls.sum() < plain.counts.target_calls.sum()


@pytest.mark.slow
def test_coupled_drafts_are_accepted_more_often_than_matches():
    coupled, matched = (decode("kangaroo", gamma=3, rule=r) for r in ("coupled", "exact_match"))
    assert coupled.tokens_per_call > matched.tokens_per_call


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_plain_decoding_is_generation_with_the_same_keys(temperature, monkeypatch):
    key, right = jax.random.key(3), rules.Keys
    text = generate(temperature, key)[:, ROWS.shape[1] :]
    monkeypatch.setattr(rules, "Keys", lambda _: right(jax.random.split(key, TEXTS)))
    np.testing.assert_array_equal(cases.together(decode(None, temperature=temperature)), text)
