"""The rules of acceptance against enumeration in NumPy, in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import speculative, warps
from jaxdiv.speculative import drafting, rules
from tests import speculative_cases as cases

DRAWS = 50_000


def normalised(weights):
    return weights / weights.sum(axis=-1, keepdims=True)


def distributions(rng, *shape):
    return normalised(np.exp(rng.normal(scale=1.5, size=shape)))


def ordered_samples(q, count):
    """Yields candidates and chance of every ordered sample of q without replacement."""
    for order in itertools.permutations(range(len(q)), count):
        chance, left = 1.0, 1.0
        for x in order:
            chance *= q[x] / left
            left -= q[x]
        if chance > 0:
            yield order, chance


def rejection(p, q, candidates):
    """The chance of each once those before it are rejected, and the residual of p in the end."""
    chances, p, q = [], p.copy(), q.copy()
    for x in candidates:
        if q[x] <= 0:  # all of q has been tried: this one was not drawn, but certain
            q = np.eye(len(p))[x]
        chances.append(min(1.0, p[x] / q[x]))
        left = np.maximum(p - q, 0)
        p = normalised(left) if left.sum() > 0 else p
        q[x] = 0
        q = normalised(q) if q.sum() > 0 else q
    return np.array(chances), p


def match(p, q, candidates):
    """A sample of p is one of the candidates."""
    left, chances = p.copy(), []
    for x in candidates:
        chances.append(left[x] / left.sum())
        left[x] = 0
    return np.array(chances), normalised(left)


CHANCES = {"sampling": rejection, "greedy_draft": match, "exact_match": match, "coupled": match}


def outcome(p, chances, left, candidates):
    """The distribution of the next token."""
    total, still = np.zeros(len(p)), 1.0
    for x, chance in zip(candidates, chances, strict=True):
        total[x] += still * chance
        still *= 1 - chance
    return total + still * left


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_reference_is_lossless_and_the_rule_is_the_reference(count):
    """By the law of total probability; each threshold of the rule is tried on both sides."""
    rng = np.random.default_rng(count)
    verify = jax.jit(jax.vmap(rules.RULES["sampling"].verify))
    for _ in range(3):
        p, q = distributions(rng, 2, 5)
        total, cells, expected = np.zeros(5), [], []
        for candidates, weight in ordered_samples(q, count):
            chances, left = rejection(p, q, candidates)
            total += weight * outcome(p, chances, left, candidates)
            for accepted in range(count + 1):  # this one, or none
                impossible = chances[accepted : accepted + 1] == 0
                if impossible.any() or (chances[:accepted] > 0.999).any():
                    continue
                uniforms = np.minimum(chances * 1.0005, 1)
                if accepted < count:
                    uniforms[accepted] = chances[accepted] * 0.9995
                cells.append((candidates, uniforms))
                expected.append((np.arange(count) == accepted, left))
        np.testing.assert_allclose(total, p, rtol=1e-12)
        candidates, uniforms = (np.array(side) for side in zip(*cells, strict=True))
        chosen, left = verify(node(p, q, candidates, uniforms))
        np.testing.assert_array_equal(chosen, [chosen for chosen, _ in expected])
        refused = ~np.asarray(chosen).any(axis=1)
        assert refused.any()
        residuals = np.array([left for _, left in expected])
        np.testing.assert_allclose(left[refused], residuals[refused], atol=1e-5)


def node(p, q, candidates, uniforms):
    rows = len(candidates)
    tile = functools.partial(np.tile, reps=(rows, 1))
    return rules._Node(
        p=jnp.float32(tile(p)),
        q=jnp.float32(tile(q)),
        candidates=jnp.int32(candidates),
        valid=np.ones(candidates.shape, bool),
        uniforms=jnp.float32(uniforms),
        key=jax.random.split(jax.random.key(0), rows),
    )


def test_more_candidates_than_classes_of_the_draft():
    """The third was not drawn: it counts as certain, and the rule stays lossless."""
    p, q = distributions(np.random.default_rng(0), 5), np.array([0.3, 0.7, 0, 0, 0])
    verify = jax.jit(jax.vmap(rules.RULES["sampling"].verify))
    for third in (2, 4):
        total = np.zeros(5)
        for candidates, weight in ordered_samples(q, 2):
            candidates = (*candidates, third)
            chances, left = rejection(p, q, candidates)
            total += weight * outcome(p, chances, left, candidates)
            if (chances < 0.999).all():
                factors = [[1.0005, 1.0005, side] for side in (1.0005, 0.9995)]
                above, below = chances * np.array(factors)
                inputs = node(p, q, np.array([candidates] * 2), np.stack([above, below]))
                chosen, rest = verify(inputs)
                np.testing.assert_array_equal(chosen, [[False] * 3, [False, False, True]])
                np.testing.assert_allclose(rest[0], left, atol=1e-6)
        np.testing.assert_allclose(total, p, rtol=1e-12)


TREE = speculative.parse("0,1,2,00,01,10,000,001")


def enumerate_walk(rule, tree, tokens, p, q):
    """The chance of each (last node accepted, next token): [N + 1, V]."""
    chances = np.zeros(p.shape)

    def visit(node, weight):
        children = [child for child in tree.children[node] if child > 0]
        each, left = CHANCES[rule](p[node], q[node], [tokens[child] for child in children])
        for child, chance in zip(children, each, strict=True):
            visit(child, weight * chance)
            weight *= 1 - chance
        chances[node] += weight * left

    visit(0, 1.0)
    return chances


@pytest.mark.parametrize("rule", ["sampling", "greedy_draft"])
def test_walks_end_as_enumerated(rule):
    """Many walks over fixed candidates on a tree of three levels, by the chi-square test."""
    rng = np.random.default_rng(0)
    p, q = distributions(rng, 2, TREE.size + 1, 4)
    tokens = np.array([0, 2, 0, 1, 3, 1, 2, 0, 3])
    expected = enumerate_walk(rule, TREE, tokens, p, q)
    np.testing.assert_allclose(expected.sum(), 1, rtol=1e-12)
    verdict = walks(rule, tokens, p, q)
    ends = np.max(verdict.path, axis=1)
    np.testing.assert_array_equal(TREE.depths[ends], verdict.accepted)
    steps = np.arange(1, TREE.depth + 1)[None] * np.ones((DRAWS, 1), int)
    on_the_way = TREE.ancestors[ends][np.arange(DRAWS)[:, None], verdict.path]
    assert ((on_the_way & (TREE.depths[verdict.path] == steps)) | (verdict.path == 0)).all()
    assert cases.p_value(4 * ends + np.asarray(verdict.token), expected.ravel()) > 1e-3


def walks(rule, tokens, p, q, *, draws=DRAWS, drafted=True):
    """The verdicts of many walks over the same candidates."""

    @jax.jit
    @jax.vmap
    def walk(key):
        return rules.walk(
            rules.RULES[rule],
            TREE,
            tokens=jnp.int32(tokens),
            valid=jnp.full(len(tokens), drafted),
            p=jnp.float32(p),
            q=jnp.float32(q),
            position=jnp.array(5),
            keys=rules.Keys(key),
        )

    return walk(jax.random.split(jax.random.key(1), draws))


@pytest.mark.parametrize("rule", rules.RULES)
def test_what_was_not_drafted_is_not_accepted(rule):
    p = distributions(np.random.default_rng(0), TREE.size + 1, 4)
    verdict = walks(rule, np.zeros(len(p), int), p, p, drafted=False)
    assert not np.any(verdict.accepted)
    assert cases.p_value(np.asarray(verdict.token), p[0]) > 1e-3


@pytest.mark.parametrize("rule", rules.RULES)
def test_certain_drafts_are_accepted_where_they_are_right(rule):
    """Point masses, as at temperature 0: the second child, then its first, then the bonus."""
    p, q = np.eye(4)[[0, 2, 1, 0, 0, 0, 3, 1, 1]], np.eye(4)[[3, 0, 1, 0, 0, 0, 3, 1, 1]]
    tokens = np.array([0, 3, 0, 1, 0, 1, 1, 0, 3])
    verdict = walks(rule, tokens, p, q, draws=50)
    np.testing.assert_array_equal(verdict.path, [[2, 6, 0]] * 50)
    np.testing.assert_array_equal(verdict.accepted, 2)
    np.testing.assert_array_equal(verdict.token, 3)


@pytest.mark.parametrize("count", [1, 3])
def test_candidates_are_samples_without_replacement(count):
    logits = np.random.default_rng(0).normal(scale=1.5, size=5)
    draft = drafting.ModelDraft(
        target=None, student=None, output=None, rule=rules.RULES["sampling"]
    )
    sampling = drafting.BatchSampling(
        warps.Warp(jnp.full(DRAWS, 0.8)), rules.Keys(jax.random.split(jax.random.key(0), DRAWS))
    )
    rows = jnp.tile(jnp.float32(logits), (DRAWS, 1))
    tokens, q = jax.jit(draft.candidates, static_argnums=(3, 4))(
        rows, sampling, jnp.zeros(DRAWS, int), 0, count
    )
    exact = cases.warped(logits, temperature=0.8)
    np.testing.assert_allclose(q[0], exact, rtol=1e-5)
    chances = np.zeros(5**count)
    for order, chance in ordered_samples(exact, count):
        chances[cases.cells(np.array([order]), 5)] = chance
    assert cases.p_value(cases.cells(np.asarray(tokens), 5), chances) > 1e-3


def test_greedy_candidates_are_the_largest_logits():
    logits = jnp.array([[0.0, 3.0, -jnp.inf, 3.0, 1.0]] * 2)
    keys = rules.Keys(jax.random.split(jax.random.key(0), 2))
    for rule, last in (("sampling", 0.0), ("greedy_draft", 2.0), ("coupled", 0.0)):
        draft = drafting.ModelDraft(target=None, student=None, output=None, rule=rules.RULES[rule])
        sampling = drafting.BatchSampling(warps.Warp(jnp.array([0.0, last])), keys)
        tokens, _ = draft.candidates(logits, sampling, jnp.zeros(2, int), 0, 3)
        np.testing.assert_array_equal(tokens, [[1, 3, 4]] * 2)


def test_draws_of_one_text_are_not_shared_by_roles_or_positions():
    keys = rules.Keys(jax.random.key(0))
    each = [keys.target(i) for i in range(5)] + [keys.accept(i) for i in range(5)]
    each += [keys.draft(i, j) for i in range(5) for j in range(5)]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in each}) == 35
