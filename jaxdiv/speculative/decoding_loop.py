"""Draft, verify, accept, roll back: the whole decoding of a batch in one `lax.while_loop` under one
`jit`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from jaxdiv import warps
from jaxdiv.models import Cache, Decoder, Drafter
from jaxdiv.speculative import rules, trees
from jaxdiv.speculative.drafting import (
    BatchSampling,
    Branches,
    Chain,
    Draft,
    Lookup,
    Proposal,
    Texts,
    places,
)

PROMPT, DRAFTED, CORRECTED, BONUS = range(4)  # where a token comes from


@dataclasses.dataclass(frozen=True)
class DraftPlan:
    """What is fixed when the loop is compiled.

    Attributes:
      kind: `chain`, `tree`, `lookup` or `none` (plain decoding).
      tree: the drafts of a round; of `chain` and `lookup` a chain of gamma, of `none` of 0.
      rule: of `rules.RULES`.
      slots: tokens of the longest text, with its prompt.
      stop: the token that ends a text, or None.
      longest: tokens that `lookup` compares, at most.
    """

    kind: str
    tree: trees.Tree
    rule: str
    slots: int
    stop: int | None = None
    longest: int = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """What a text's rounds did; the prompt's own pass is no target call.

    Attributes:
      target_calls: [B] rounds begun.
      drafted: [B, D] rounds that drafted a token at this depth of the tree.
      accepted: [B, D] rounds that accepted one there, and so all before it.
      lengths: [B, D + 1] histogram of accepted tokens a round; [b, 0] counts rounds that accepted
        none.
      draft_steps: how often the draft ran, for all texts at once.
    """

    target_calls: Int[Array | np.ndarray, " B"]
    drafted: Int[Array | np.ndarray, "B D"]
    accepted: Int[Array | np.ndarray, "B D"]
    lengths: Int[Array | np.ndarray, "B D1"]
    draft_steps: Int[Array | np.ndarray, ""]


class LoopState(NamedTuple):
    """The carry of the loop: the texts, where each token comes from [B, T], and the counts."""

    texts: Texts
    origin: Int[Array, "B T"]
    counts: Counts


@functools.partial(jax.jit, static_argnames=("plan", "graphs", "stream"))
def run(
    plan: DraftPlan,
    graphs,
    params,
    prompts,
    lengths,
    limits,
    sampling: BatchSampling,
    eta,
    *,
    stream: Callable | None,
):
    """Decodes until every text has ended.

    Args:
      plan: what to do.
      graphs, params: of `nnx.split` of (target, student); of the target alone where no model
        drafts.
      prompts: [B, P] int32, what lies behind a prompt's length means nothing.
      lengths: [B], at least 1.
      limits: [B], length at which a text ends, at most `plan.slots`.
      sampling: how.
      eta: threshold of a chain.
      stream: called after each round with (texts' tokens [B, T], lengths before [B] and after [B],
        origin [B, T]), in order.

    Returns:
      LoopState.
    """
    draft = make_draft(plan, [nnx.merge(*part) for part in zip(graphs, params, strict=True)], eta)

    def step(state):
        new = _round(plan, draft, state, limits, sampling)
        if stream is not None:
            texts = new.texts
            jax.debug.callback(
                stream, texts.tokens, state.texts.length, texts.length, new.origin, ordered=True
            )
        return new

    start = begin(plan, draft, prompts, lengths, limits)
    return jax.lax.while_loop(lambda state: jnp.any(state.texts.active), step, start)


def make_draft(plan: DraftPlan, models: Sequence[Decoder | Drafter], eta: Array) -> Draft:
    """What drafts by `plan`: `models` are the target and, unless nothing or the text itself drafts,
    the student."""
    target = models[0].unrolled()
    if plan.kind in ("lookup", "none"):
        return Lookup(target, plan.tree.depth, plan.longest)
    student, rule = models[1].unrolled(), rules.RULES[plan.rule]
    if plan.kind == "tree":
        return Branches(target, student, rule, plan.tree)
    return Chain(target, student, rule, plan.tree.depth, eta)


def begin(plan: DraftPlan, draft: Draft, prompts, lengths, limits) -> LoopState:
    """Reads all but the last token of each prompt; what a short prompt's row reads beyond it is
    written over later."""
    batch, width = prompts.shape
    slots = plan.slots + plan.tree.size  # a round writes its drafts before it knows how many count
    target_cache, draft_cache = (
        draft.target.init_cache(batch, slots),
        draft.init_cache(batch, slots),
    )
    if width > 1:
        positions = jnp.broadcast_to(jnp.arange(width - 1), (batch, width - 1))
        hidden, _, target_cache, draft_cache = draft.read(
            prompts[:, :-1], target_cache, draft_cache, positions=positions
        )
        _, target_cache = _rest(draft, hidden, target_cache, positions=positions)
    tokens = jnp.zeros((batch, slots), jnp.int32).at[:, :width].set(prompts)
    texts = Texts(tokens, lengths, lengths < limits, target_cache, draft_cache)
    none, depth = jnp.zeros(batch, jnp.int32), plan.tree.depth
    by_depth = jnp.zeros((batch, depth), jnp.int32)
    counts = Counts(
        none, by_depth, by_depth, jnp.zeros((batch, depth + 1), jnp.int32), jnp.array(0)
    )
    return LoopState(texts, jnp.zeros(tokens.shape, jnp.int8), counts)


def _rest(draft, hidden, cache, **where) -> tuple[Array, Cache]:
    return draft.target.run_layers(
        hidden, draft.exit_layer, draft.target.depth, cache=cache, **where
    )


def _round(plan, draft, state, limits, sampling):
    """One target call."""
    texts = state.texts
    proposal = draft.propose(texts, sampling)
    verdict, target_cache = verify(plan, draft, texts.last, proposal, sampling)
    caches = target_cache, proposal.draft_cache
    if plan.kind == "tree":
        caches = _gather(caches, texts.last, verdict.path)
    added, origin = _added(plan.tree, proposal, verdict)
    state = LoopState(
        texts._replace(target_cache=caches[0], draft_cache=caches[1]), state.origin, state.counts
    )
    return _append(plan, state, added, origin, verdict, proposal, limits)


def verify(
    plan: DraftPlan,
    draft: Draft,
    last: Int[Array, " B"],
    proposal: Proposal,
    sampling: BatchSampling,
) -> tuple[rules.Verdict, Cache]:
    """The target's call on a round's drafts after the token at `last`: the verdicts [B] and the
    target's cache."""
    tree = plan.tree
    slots = proposal.target_cache[0].keys.shape[1]
    where = places(tree, np.arange(tree.size + 1), last, slots)
    hidden, target_cache = _rest(draft, proposal.hidden, proposal.target_cache, **where)
    p = jax.nn.softmax(warps.warp(draft.target.logits(hidden), _a_node(sampling.how)), axis=-1)
    verdict = jax.vmap(functools.partial(rules.walk, rules.RULES[plan.rule], tree))(
        tokens=proposal.tokens,
        valid=proposal.valid,
        p=p,
        q=proposal.q,
        position=last,
        keys=sampling.keys,
    )
    return verdict, target_cache


def _a_node(how):
    return jax.tree.map(lambda value: value[:, None], how)


def _gather(caches, last, path):
    """Brings the accepted nodes' entries, whose slots are the nodes' numbers from `last` on, behind
    it in order.

    What stands for nodes that were not accepted is written over by the next round.
    """
    batch = path.shape[0]
    taken, put = last[:, None] + path, last[:, None] + 1 + jnp.arange(path.shape[1])[None]

    def move(held):
        heads = held.shape[0] // batch
        rows = jnp.arange(held.shape[0])[:, None]
        here, there = (jnp.repeat(slots, heads, axis=0) for slots in (taken, put))
        return held.at[rows, there].set(held[rows, here])

    return jax.tree.map(move, caches)


def _added(tree, proposal, verdict):
    """The round's tokens [B, D + 1], of which accepted + 1 count, and where each comes from."""
    places = jnp.arange(tree.depth + 1)[None]
    accepted = verdict.accepted[:, None]
    drafted = jnp.take_along_axis(proposal.tokens, jnp.pad(verdict.path, ((0, 0), (0, 1))), axis=1)
    tokens = jnp.where(places < accepted, drafted, verdict.token[:, None])
    # The token after the last draft that was made is no correction.
    children = jnp.asarray(tree.children)
    end = jnp.max(verdict.path, axis=1, initial=0)
    after = jnp.take_along_axis(proposal.valid, jnp.maximum(children[end], 0), axis=1) & (
        children[end] > 0
    )
    own = jnp.where(jnp.any(after, axis=1), CORRECTED, BONUS)
    return tokens, jnp.where(places < accepted, DRAFTED, own[:, None]).astype(jnp.int8)


def _append(plan, state, added, origin, verdict, proposal, limits):
    """The texts with the round's tokens, up to a stop token or the limit, and the counts with the
    round."""
    texts, counts = state.texts, state.counts
    length, active = texts.length, texts.active
    offsets = jnp.arange(added.shape[1])[None]
    count = jnp.minimum(verdict.accepted + 1, limits - length)
    stopped = jnp.zeros(active.shape, bool)
    if plan.stop is not None:
        is_stop = (added == plan.stop) & (offsets < count[:, None])
        stopped = jnp.any(is_stop, axis=1)
        count = jnp.where(stopped, jnp.argmax(is_stop, axis=1) + 1, count)
    # An ended text's writes are lost: they lie beyond the array.
    slots = jnp.where(active[:, None], length[:, None] + offsets, texts.tokens.shape[1])
    rows = jnp.arange(added.shape[0])[:, None]
    tokens = texts.tokens.at[rows, slots].set(added, mode="drop")
    length = jnp.where(active, length + count, length)
    levels = [
        jnp.any(proposal.valid[:, plan.tree.level(d + 1)], axis=1) for d in range(plan.tree.depth)
    ]
    accepted = jnp.arange(plan.tree.depth)[None] < verdict.accepted[:, None]
    mine = active[:, None]
    counts = Counts(
        target_calls=counts.target_calls + active,
        drafted=counts.drafted + (mine & jnp.stack(levels, axis=1) if levels else counts.drafted),
        accepted=counts.accepted + (mine & accepted),
        lengths=counts.lengths + (mine & (offsets == verdict.accepted[:, None])),
        draft_steps=counts.draft_steps + proposal.steps,
    )
    return LoopState(
        texts._replace(tokens=tokens, length=length, active=active & ~stopped & (length < limits)),
        state.origin.at[rows, slots].set(origin, mode="drop"),
        counts,
    )
