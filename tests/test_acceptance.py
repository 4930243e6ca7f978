"""Acceptance rules against float64 NumPy; target calls against enumeration and against decoding
itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import xlogy

from jaxdiv import acceptance, divergences
from tests import markov_decoding as decoding

TEMPERATURES = (0.25, 1.0, 20.0)


def rows():
    """Student and teacher logits [rows, V]: ordinary, near equality, one-hot, missing classes, very
    far apart."""
    rng = np.random.default_rng(0)
    teacher = 3 * rng.normal(size=(32, 40)).astype(np.float32)
    student = teacher + np.repeat([1.0, 0.1, 1e-3, 1e-5], 8)[:, None] * rng.normal(
        size=teacher.shape
    )
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
        np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-37, err_msg=rule.__name__)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sampling_is_what_total_variation_leaves(temperature):
    distance = divergences.total_variation(STUDENT / temperature, TEACHER / temperature)
    np.testing.assert_allclose(
        acceptance.sampling(STUDENT, TEACHER, temperature=temperature) + distance, 1, rtol=5e-7
    )


def test_every_rule_is_greedy_match_at_temperature_0():
    match = np.argmax(STUDENT, axis=-1) == np.argmax(TEACHER, axis=-1)
    assert 0 < match.mean() < 1
    np.testing.assert_array_equal(acceptance.greedy_match(STUDENT, TEACHER), match)
    for rule in acceptance.BY_TEMPERATURE.values():
        np.testing.assert_array_equal(
            rule(STUDENT, TEACHER, temperature=0), match, err_msg=rule.__name__
        )


@pytest.mark.parametrize("rule", [*acceptance.BY_TEMPERATURE.values(), acceptance.greedy_match])
def test_nan_is_never_accepted(rule):
    good, bad = jnp.zeros((64, 64)), jnp.zeros((64, 64)).at[:, 5].set(jnp.nan)
    for pair in ((good, bad), (bad, good), (bad, bad)):
        assert np.isnan(jax.jit(rule)(*pair)).all()


@pytest.mark.parametrize("name", acceptance.BY_TEMPERATURE)
def test_jit_and_vmap_give_the_same(name):
    def at(student, teacher):
        return jnp.stack(
            [acceptance.BY_TEMPERATURE[name](student, teacher, temperature=t) for t in TEMPERATURES]
        )

    got = jax.jit(jax.vmap(at, out_axes=-1))(STUDENT, TEACHER)
    np.testing.assert_allclose(got, at(STUDENT, TEACHER), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("temperature", [0, *TEMPERATURES])
def test_mean_over_the_targets_tokens_is_the_rule(temperature):
    _, p = exact(temperature) if temperature else (None, np.eye(40)[np.argmax(TEACHER, axis=-1)])
    every = np.arange(40)[:, None] * np.ones(len(p), int)
    for given, rule in (
        (
            acceptance.sampling_given(STUDENT[None], TEACHER[None], every, temperature=temperature),
            acceptance.sampling,
        ),
        (acceptance.greedy_given(STUDENT[None], every), acceptance.greedy_draft),
    ):
        mean = np.where(p.T > 0, p.T * np.asarray(given, np.float64), 0).sum(axis=0)
        # The quotient's error is that of two log-probabilities of size up to 100.
        np.testing.assert_allclose(
            mean, rule(STUDENT, TEACHER, temperature=temperature), rtol=2e-5, atol=1e-37
        )


def test_target_calls_agree_with_enumeration():
    """Every outcome of the accept coins of a short text, decoded by hand."""
    gamma, length = 3, 9
    accept = np.random.default_rng(1).random(length)
    begins, passed, rounds = np.zeros(length), np.zeros(gamma), 0.0
    for coins in itertools.product([0, 1], repeat=length):
        weight, start = np.prod(np.where(coins, accept, 1 - accept)), 0
        while start < length:
            kept = next(
                (k for k, coin in enumerate(coins[start : start + gamma]) if not coin), gamma
            )
            begins[start] += weight
            if start + gamma <= length:
                rounds += weight
                passed[:kept] += weight
            start += kept + 1
    padded = jnp.asarray([*accept, np.nan, 0.5], jnp.float32)
    got = acceptance.renewal(padded, length, gamma=gamma)
    np.testing.assert_allclose(got, [*begins, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(
        acceptance.calls(padded, length, gamma=gamma), begins.sum(), rtol=1e-6
    )
    accepted, counted = acceptance.accepted_at(padded, length, gamma=gamma)
    np.testing.assert_allclose(accepted, passed, rtol=1e-5)
    np.testing.assert_allclose(counted, [rounds] * gamma, rtol=1e-5)


def test_texts_of_a_batch_are_independent():
    accept = jax.random.uniform(jax.random.key(0), (2, 3, 20))
    valid = jnp.array([[20, 11, 1], [0, 20, 3]])
    for function in (
        acceptance.renewal,
        acceptance.calls,
        lambda a, v, gamma: acceptance.accepted_at(a, v, gamma=gamma),
    ):
        together = function(accept, valid, gamma=4)
        alone = jax.jit(jax.vmap(jax.vmap(lambda a, v, f=function: f(a, v, gamma=4))))(
            accept, valid
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, alone)
    assert acceptance.calls(accept, valid, gamma=4)[0, 2] == 1
    assert acceptance.calls(accept, valid, gamma=4)[1, 0] == 0


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 1.0), (0.5, 1.9375), (1.0, 5.0)])
def test_constant_acceptance_gives_the_iid_formula(alpha, expected):
    assert acceptance.tokens_per_call_iid(alpha, 4) == expected
    length = 5000
    calls = acceptance.calls(jnp.full(length, alpha), length, gamma=4)
    np.testing.assert_allclose(length / calls, expected, rtol=5e-4)


@pytest.mark.parametrize("gamma", [0, -1])
def test_bad_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="`gamma` must be at least 1, got"):
        acceptance.renewal(jnp.ones(3), 3, gamma=gamma)


def test_target_calls_agree_with_enumeration_where_drafting_may_stop():
    gamma, length, rng = 3, 9, np.random.default_rng(2)
    accept, sure = rng.random(length), rng.random(length) < 0.6
    begins, passed = np.zeros(length), np.zeros(gamma)
    for coins in itertools.product([0, 1], repeat=length):
        weight, start = np.prod(np.where(coins, accept, 1 - accept)), 0
        while start < length:
            drafts = next(
                (k + 1 for k in range(gamma - 1) if not [*sure, *[True] * gamma][start + k]), gamma
            )
            kept = next(
                (k for k, coin in enumerate(coins[start : start + drafts]) if not coin), drafts
            )
            begins[start] += weight
            if start + gamma <= length:
                passed[:kept] += weight
            start += kept + 1
    accept = jnp.asarray(accept, jnp.float32)
    np.testing.assert_allclose(
        acceptance.renewal(accept, length, gamma=gamma, sure=sure), begins, rtol=1e-5
    )
    accepted, _ = acceptance.accepted_at(accept, length, gamma=gamma, sure=sure)
    np.testing.assert_allclose(accepted, passed, rtol=1e-5)
    for value in (True, None):
        same = acceptance.renewal(accept, length, gamma=gamma, sure=value)
        np.testing.assert_array_equal(same, acceptance.renewal(accept, length, gamma=gamma))
    never = acceptance.renewal(accept, length, gamma=gamma, sure=False)
    np.testing.assert_allclose(never, acceptance.renewal(accept, length, gamma=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "gamma", "eta"),
    [
        ("sampling", 1, 0.0),
        ("sampling", 4, 0.0),
        ("sampling", 4, 0.6),
        ("greedy", 1, 0.0),
        ("greedy", 4, 0.0),
    ],
)
def test_target_calls_agree_with_decoding(rule, gamma, eta):
    """The expected calls given a text, against the calls of the decoder that wrote it and on the
    target's own texts."""
    rng = np.random.default_rng(gamma)
    texts, length = 20_000, 40
    target, draft = decoding.chains(rng, classes=5)
    used = np.eye(5)[np.argmax(draft, axis=-1)] if rule == "greedy" else draft
    tokens, calls, rounds, accepted = decoding.speculative_text(
        rng, target, used, texts, length, gamma, eta=eta
    )

    def before(tokens):
        return np.concatenate([np.zeros((texts, 1), int), tokens[:, :-1]], axis=1)

    def chances(tokens):
        if rule == "greedy":
            return acceptance.greedy_given(np.log(draft)[before(tokens)], tokens)
        return acceptance.sampling_given(
            np.log(draft)[before(tokens)], np.log(target)[before(tokens)], tokens
        )

    def given(tokens):
        return {"accept": chances(tokens), "sure": used.max(axis=-1)[before(tokens)] >= eta}

    expected = acceptance.calls(**given(tokens), valid=length, gamma=gamma)
    expected_accepted, expected_rounds = acceptance.accepted_at(
        **given(tokens), valid=length, gamma=gamma
    )
    own = decoding.plain_text(rng, target, texts, length)
    expected_own = acceptance.calls(**given(own), valid=length, gamma=gamma)

    zs = [
        z_score(calls, expected),
        z_score(rounds, expected_rounds[:, 0]),
        two_sample_z(calls, expected_own),
    ]
    zs += [z_score(a, b) for a, b in zip(accepted.T, np.asarray(expected_accepted).T, strict=True)]
    assert np.max(np.abs(zs)) < 4, zs
    alpha = np.asarray(chances(own)).mean()
    iid = length / acceptance.tokens_per_call_iid(alpha, gamma)
    assert (
        gamma == 1 or abs(z_score(calls, np.full(texts, iid))) > 5
    )  # so few texts do tell formulas apart


def test_the_simulated_decoder_is_lossless():
    """Else it would be no reference: its texts' last two tokens are distributed as the target's."""
    rng = np.random.default_rng(7)
    target, draft = decoding.chains(rng, classes=5)
    tokens, *_ = decoding.speculative_text(rng, target, draft, 50_000, 6, 3)
    pairs = np.bincount(5 * tokens[:, -2] + tokens[:, -1], minlength=25)
    expected = np.linalg.matrix_power(target, 5)[0][:, None] * target
    assert stats.chisquare(pairs, 50_000 * expected.ravel()).pvalue > 1e-4


def z_score(observed, expected):
    """Of the mean difference of two paired samples; 0 where they are the same."""
    difference = np.asarray(observed, float) - np.asarray(expected, float)
    error = difference.std(ddof=1) / np.sqrt(difference.size)
    return 0.0 if np.abs(difference).max() < 1e-4 else difference.mean() / error


def two_sample_z(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return (a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size)
