"""Acceptance rules against float64 NumPy; target calls against enumeration and decoding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.special import xlogy

from jaxdiv import acceptance, divergences
from tests import markov_decoding as decoding

TEMPERATURES = (0.25, 1.0, 20.0)


def rows():
    """Returns student and teacher logits [rows, V]: ordinary, nearly equal and at the edges."""
    rng = np.random.default_rng(0)
    teacher = 3 * rng.normal(size=(32, 40)).astype(np.float32)
    distances = np.repeat([1.0, 0.1, 1e-3, 1e-5], 8)[:, None]
    student = teacher + distances * rng.normal(size=teacher.shape)
    edges = np.zeros((5, 40), np.float32)
    edges[0, 3], edges[1, 3], edges[2, :7], edges[3, 5] = 60, 1e4, -np.inf, -1e4
    other = np.roll(edges, 1, axis=0)
    return np.concatenate([student, other]).astype(np.float32), np.concatenate([teacher, edges])


STUDENT, TEACHER = rows()


def exact(temperature):
    return (decoding.softmax(z.astype(np.float64) / temperature) for z in (STUDENT, TEACHER))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_rules_agree_with_float64(temperature):
    q, p = exact(temperature)
    likeliest = np.argmax(STUDENT, axis=-1)
    entropy = -xlogy(p, p).sum(axis=-1)
    chance = p[np.arange(len(p)), likeliest]
    expected = {
        acceptance.sampling: np.minimum(p, q).sum(axis=-1),
        acceptance.greedy_draft: chance,
        acceptance.typical: chance > np.minimum(0.09, 0.3 * np.exp(-entropy)),
        acceptance.exact_match: (p * q).sum(axis=-1),
    }
    for rule, value in expected.items():
        got = rule(STUDENT, TEACHER, temperature=temperature)
        assert_allclose(got, value, rtol=1e-6, atol=1e-37, err_msg=rule.__name__)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sampling_is_what_total_variation_leaves(temperature):
    distance = divergences.total_variation(STUDENT / temperature, TEACHER / temperature)
    accepted = acceptance.sampling(STUDENT, TEACHER, temperature=temperature)
    assert_allclose(accepted + distance, 1, rtol=5e-7)


def test_every_rule_is_greedy_match_at_temperature_0():
    match = np.argmax(STUDENT, axis=-1) == np.argmax(TEACHER, axis=-1)
    assert 0 < match.mean() < 1
    assert_array_equal(acceptance.greedy_match(STUDENT, TEACHER), match)
    for rule in acceptance.BY_TEMPERATURE.values():
        accepted = rule(STUDENT, TEACHER, temperature=0)
        assert_array_equal(accepted, match, err_msg=rule.__name__)


@pytest.mark.parametrize("rule", [*acceptance.BY_TEMPERATURE.values(), acceptance.greedy_match])
def test_nan_is_never_accepted(rule):
    good, bad = jnp.zeros((64, 64)), jnp.zeros((64, 64)).at[:, 5].set(jnp.nan)
    for pair in ((good, bad), (bad, good), (bad, bad)):
        assert np.isnan(jax.jit(rule)(*pair)).all()


@pytest.mark.parametrize("name", acceptance.BY_TEMPERATURE)
def test_jit_and_vmap_give_the_same(name):
    rule = acceptance.BY_TEMPERATURE[name]

    def every(student, teacher):
        return jnp.stack([rule(student, teacher, temperature=t) for t in TEMPERATURES])

    got = jax.jit(jax.vmap(every, out_axes=-1))(STUDENT, TEACHER)
    assert_allclose(got, every(STUDENT, TEACHER), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("temperature", [0, *TEMPERATURES])
def test_mean_over_the_targets_tokens_is_the_rule(temperature):
    _, p = exact(temperature) if temperature else (None, np.eye(40)[np.argmax(TEACHER, axis=-1)])
    every = np.arange(40)[:, None] * np.ones(len(p), int)
    at = {"temperature": temperature}
    sampled = acceptance.sampling_given(STUDENT[None], TEACHER[None], every, **at)
    greedy = acceptance.greedy_given(STUDENT[None], every)
    for chances, rule in ((sampled, acceptance.sampling), (greedy, acceptance.greedy_draft)):
        mean = np.where(p.T > 0, p.T * np.asarray(chances, np.float64), 0).sum(axis=0)
        # The quotient's error is that of two log-probabilities of size up to 100.
        assert_allclose(mean, rule(STUDENT, TEACHER, **at), rtol=2e-5, atol=1e-37)


def enumerated(accept, sure, gamma):
    """Decodes by hand every outcome of the accept coins of a short text."""
    length = len(accept)
    begins, passed, rounds = np.zeros(length), np.zeros(gamma), 0.0
    for coins in itertools.product([0, 1], repeat=length):
        weight, start = np.prod(np.where(coins, accept, 1 - accept)), 0
        while start < length:
            stops = [*sure, *[True] * gamma][start : start + gamma - 1]
            drafts = next((k + 1 for k, goes_on in enumerate(stops) if not goes_on), gamma)
            coins_of_round = enumerate(coins[start : start + drafts])
            accepted = next((k for k, coin in coins_of_round if not coin), drafts)
            begins[start] += weight
            if start + gamma <= length:
                rounds += weight
                passed[:accepted] += weight
            start += accepted + 1
    return begins, passed, rounds


@pytest.mark.parametrize("stops", [False, True])
def test_target_calls_agree_with_enumeration(stops):
    gamma, length, rng = 3, 9, np.random.default_rng(1 + stops)
    accept = rng.random(length)
    sure = rng.random(length) < 0.6 if stops else np.ones(length, bool)
    begins, passed, rounds = enumerated(accept, sure, gamma)
    padded = jnp.asarray([*accept, np.nan, 0.5], jnp.float32)
    options = {"gamma": gamma, "sure": np.append(sure, [True, False]) if stops else None}
    got = acceptance.renewal(padded, length, **options)
    assert_allclose(got, [*begins, 0, 0], rtol=1e-5)
    calls = acceptance.calls(padded, length, **options)
    assert_allclose(calls, begins.sum(), rtol=1e-6)
    accepted, counted = acceptance.accepted_at(padded, length, **options)
    assert_allclose(accepted, passed, rtol=1e-5)
    assert_allclose(counted, [rounds] * gamma, rtol=1e-5)


def test_drafts_that_are_always_or_never_sure():
    accept = jnp.asarray(np.random.default_rng(2).random(9), jnp.float32)
    for sure in (True, None):
        same = acceptance.renewal(accept, 9, gamma=3, sure=sure)
        assert_array_equal(same, acceptance.renewal(accept, 9, gamma=3))
    never = acceptance.renewal(accept, 9, gamma=3, sure=False)
    assert_allclose(never, acceptance.renewal(accept, 9, gamma=1), rtol=1e-6)


def test_texts_of_a_batch_are_independent():
    accept = jax.random.uniform(jax.random.key(0), (2, 3, 20))
    valid = jnp.array([[20, 11, 1], [0, 20, 3]])
    for function in (acceptance.renewal, acceptance.calls, acceptance.accepted_at):
        function = functools.partial(function, gamma=4)
        together, alone = (
            function(accept, valid),
            jax.jit(jax.vmap(jax.vmap(function)))(accept, valid),
        )
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), together, alone)
    assert acceptance.calls(accept, valid, gamma=4)[0, 2] == 1
    assert acceptance.calls(accept, valid, gamma=4)[1, 0] == 0


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 1.0), (0.5, 1.9375), (1.0, 5.0)])
def test_constant_acceptance_gives_the_iid_formula(alpha, expected):
    assert acceptance.tokens_per_call_iid(alpha, 4) == expected
    length = 5000
    calls = acceptance.calls(jnp.full(length, alpha), length, gamma=4)
    assert_allclose(length / calls, expected, rtol=5e-4)


@pytest.mark.parametrize("gamma", [0, -1])
def test_bad_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="`gamma` must be at least 1, got"):
        acceptance.renewal(jnp.ones(3), 3, gamma=gamma)


DECODED = (
    ("sampling", 1, 0), ("sampling", 4, 0), ("sampling", 4, 0.6), ("greedy", 1, 0), ("greedy", 4, 0)
)  # fmt: skip


@pytest.mark.parametrize(("rule", "gamma", "eta"), DECODED)
def test_target_calls_agree_with_decoding(rule, gamma, eta):
    """Compares expected calls with those of the decoder that wrote a text, and with plain texts."""
    rng = np.random.default_rng(gamma)
    texts, length = 20_000, 40
    target, draft = decoding.chains(rng, classes=5)
    drafting = np.eye(5)[np.argmax(draft, axis=-1)] if rule == "greedy" else draft
    tokens, calls, rounds, accepted = decoding.speculative_text(
        rng, target, drafting, texts, length, gamma, eta=eta
    )

    def before(tokens):
        return np.concatenate([np.zeros((texts, 1), int), tokens[:, :-1]], axis=1)

    def chances(tokens):
        log_q, log_p = (np.log(chain)[before(tokens)] for chain in (draft, target))
        if rule == "greedy":
            return acceptance.greedy_given(log_q, tokens)
        return acceptance.sampling_given(log_q, log_p, tokens)

    def arguments(tokens):
        sure = drafting.max(axis=-1)[before(tokens)] >= eta
        return {"accept": chances(tokens), "sure": sure, "valid": length, "gamma": gamma}

    expected = acceptance.calls(**arguments(tokens))
    expected_accepted, expected_rounds = acceptance.accepted_at(**arguments(tokens))
    plain = decoding.plain_text(rng, target, texts, length)
    expected_plain = acceptance.calls(**arguments(plain))
    zs = [z_score(calls, expected), z_score(rounds, expected_rounds[:, 0])]
    zs.append(two_sample_z(calls, expected_plain))
    zs += [z_score(a, b) for a, b in zip(accepted.T, np.asarray(expected_accepted).T, strict=True)]
    assert np.max(np.abs(zs)) < 4, zs
    alpha = np.asarray(chances(plain)).mean()
    iid = length / acceptance.tokens_per_call_iid(alpha, gamma)
    # The texts are enough to tell the formulas apart.
    assert gamma == 1 or abs(z_score(calls, np.full(texts, iid))) > 5


def test_the_simulated_decoder_is_lossless():
    """Checks that its texts' last two tokens are distributed as the target's."""
    rng = np.random.default_rng(7)
    target, draft = decoding.chains(rng, classes=5)
    tokens, *_ = decoding.speculative_text(rng, target, draft, 50_000, 6, 3)
    pairs = np.bincount(5 * tokens[:, -2] + tokens[:, -1], minlength=25)
    expected = np.linalg.matrix_power(target, 5)[0][:, None] * target
    assert stats.chisquare(pairs, 50_000 * expected.ravel()).pvalue > 1e-4


def z_score(observed, expected):
    """Returns the z-score of two paired samples' mean difference; 0 if they are the same."""
    difference = np.asarray(observed, float) - np.asarray(expected, float)
    error = difference.std(ddof=1) / np.sqrt(difference.size)
    return 0.0 if np.abs(difference).max() < 1e-4 else difference.mean() / error


def two_sample_z(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return (a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size)
