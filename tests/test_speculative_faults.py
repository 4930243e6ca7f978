"""Common mistakes of decoders, planted: the check of the distribution must see each of them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxdiv.models import layers
from jaxdiv.speculative import decoding_loop, drafting, rules
from tests import speculative_cases as cases

DRAWS = 50_000


@pytest.fixture
def plant(monkeypatch):
    """`monkeypatch`, with nothing compiled before or kept after."""
    decoding_loop.run.clear_cache()
    yield monkeypatch
    monkeypatch.undo()
    decoding_loop.run.clear_cache()


def _verify(plant, verify):
    rule = dataclasses.replace(rules.RULES["sampling"], verify=verify)
    plant.setitem(rules.RULES, "sampling", rule)


def residual_not_normalised(plant):
    """The last class gets the missing mass, as when drawing by the cumulative sum."""

    def verify(node):
        chosen, _ = rules._rejection(node)
        residual = jnp.maximum(node.p - node.q, 0)
        return chosen, residual.at[-1].add(1 - jnp.sum(residual))

    _verify(plant, verify)


def residual_of_the_draft(plant):
    """Takes max(q - p, 0) in place of max(p - q, 0)."""
    _verify(plant, lambda node: (rules._rejection(node)[0], jnp.maximum(node.q - node.p, 1e-30)))


def ratio_upside_down(plant):
    def verify(node):
        x = node.candidates[0]
        return (node.valid & (node.uniforms * node.p[x] < node.q[x])), rules._rejection(node)[1]

    _verify(plant, verify)


def drafts_of_another_temperature(plant):
    def candidates(self, logits, sampling, *rest, right=drafting.ModelDraft.candidates):
        warp = sampling.warp._replace(temperature=1.5 * sampling.warp.temperature)
        tokens, _ = right(self, logits, sampling._replace(warp=warp), *rest)
        return tokens, right(self, logits, sampling, *rest)[1]

    plant.setattr(drafting.ModelDraft, "candidates", candidates)


def stale_cache(plant):
    """Entries of rejected drafts stay in the cache."""

    def write(cache, keys, values, slots, *, right=layers._write):
        new = right(cache, keys, values, slots)
        return jax.tree.map(
            lambda a, b: jnp.where(jnp.any(a != 0, axis=-1, keepdims=True), a, b), cache, new
        )

    plant.setattr(layers, "_write", write)


def positions_off_by_one(plant):
    """The positions of the layers that verify are wrong after a text's first roll-back."""
    right_round, right_places = decoding_loop._round, decoding_loop.places

    def one_round(plan, draft, state, *rest):
        counts = state.counts
        rolled_back = jnp.sum(counts.drafted, axis=1) > jnp.sum(counts.accepted, axis=1)

        def places(*arguments):
            where = right_places(*arguments)
            return where | {"positions": where["positions"] + rolled_back[:, None]}

        plant.setattr(decoding_loop, "places", places)
        return right_round(plan, draft, state, *rest)

    plant.setattr(decoding_loop, "_round", one_round)


def bonus_of_the_draft(plant):
    def propose(self, texts, sampling, *, right=drafting.Chain.propose):
        proposal, position = right(self, texts, sampling), texts.last + self.gamma
        caches = proposal.target_cache, proposal.draft_cache
        features = self.read(proposal.tokens[:, -1:], *caches, positions=position[:, None])[1]
        _, q = self.candidates(self.logits(features)[:, 0], sampling, position, 0, 1)
        return proposal._replace(q=proposal.q.at[:, -1].set(q))

    def walk(*arguments, p, q, right=rules.walk, **rest):
        return right(*arguments, p=p.at[-1].set(q[-1]), q=q, **rest)

    plant.setattr(drafting.Chain, "propose", propose)
    plant.setattr(rules, "walk", walk)


def unlikely_drafts_dropped(plant):
    """Drafts of small q(x) are not verified, so that the stop depends on the token itself."""

    def propose(self, *arguments, right=drafting.Chain.propose):
        proposal = right(self, *arguments)
        q, tokens = proposal.q[:, :-1], proposal.tokens[:, 1:, None]
        likely = jnp.take_along_axis(q, tokens, axis=-1)[..., 0] > 0.3
        valid = proposal.valid.at[:, 1:].set(jnp.cumprod(likely, axis=1) > 0)
        return proposal._replace(valid=valid)

    plant.setattr(drafting.Chain, "propose", propose)


def siblings_of_the_whole_draft(plant):
    """A second candidate is compared with q as if the first were still in it."""

    def verify(node):
        p, accepted = node.p, jnp.array(False)
        chosen = []
        for x, uniform in zip(node.candidates, node.uniforms, strict=True):
            accept = ~accepted & (uniform * node.q[x] < p[x])
            chosen.append(accept)
            accepted |= accept
            p = jnp.where(accepted, p, rules._normalize(jnp.maximum(p - node.q, 0))[0])
        return jnp.stack(chosen), p

    _verify(plant, verify)


def drafts_seen_by_their_siblings(plant):
    """A tree's nodes see all that stands in the cache up to their slots."""
    for module in (drafting, decoding_loop):

        def places(*arguments, right=module.places):
            where = right(*arguments)
            slots = jnp.arange(where["visible"].shape[-1])[None, None]
            return where | {"visible": slots <= where["slots"][..., None]}

        plant.setattr(module, "places", places)


SIBLINGS, TREE = rules.Tree((0, 0)), rules.Tree((0, 0, 1, 1))
QUICK = (residual_not_normalised, stale_cache)
SLOW = (
    *(residual_of_the_draft, ratio_upside_down, drafts_of_another_temperature),
    *(positions_off_by_one, bonus_of_the_draft, unlikely_drafts_dropped),
    *(siblings_of_the_whole_draft, drafts_seen_by_their_siblings),
)
SHAPES = {siblings_of_the_whole_draft: (1, SIBLINGS), drafts_seen_by_their_siblings: (2, TREE)}


@pytest.mark.parametrize(
    "fault", [*QUICK, *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)]
)
def test_fault_is_seen(fault, plant):
    gamma, tree = SHAPES.get(fault, (1, None))
    fault(plant)
    assert cases.lossless(cases.student("decoder"), gamma=gamma, tree=tree, draws=DRAWS) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "tree"), [(1, None), (1, SIBLINGS), (2, TREE)])
def test_without_a_fault_nothing_is_seen(gamma, tree):
    assert cases.lossless(cases.student("decoder"), gamma=gamma, tree=tree) > 1e-4


def test_a_lossy_rule_is_seen():
    draft = cases.student("decoder")
    assert cases.lossless(draft, gamma=1, draws=DRAWS, rule="typical") < 1e-9
