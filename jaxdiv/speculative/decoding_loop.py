"""Draft, verify, accept, roll back: a batch in one `lax.while_loop` under one `jit`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Int8

from jaxdiv import warps
from jaxdiv.models import Cache, Decoder, Drafter
from jaxdiv.speculative import rules, trees
from jaxdiv.speculative.drafting import (
    LOOKUP_TOKENS,
    BatchSampling,
    Branches,
    Chain,
    Draft,
    Lookup,
    Proposal,
    Texts,
    places,
)

PROMPT, DRAFTED, CORRECTED, BONUS = range(4)  # origins of tokens


@dataclasses.dataclass(frozen=True)
class DraftPlan:
    """Static arguments of the loop.

    Attributes:
      kind: `chain`, `tree`, `lookup` or `none` (plain decoding).
      tree: of a round's drafts; a chain of gamma for `chain` and `lookup`, of 0 for `none`.
      rule: a name in `rules.RULES`.
      slots: tokens of the longest text, with its prompt.
      stop: the token that ends a text, or None.
      longest: tokens that `lookup` compares, at most.
    """

    kind: str
    tree: trees.Tree
    rule: str
    slots: int
    stop: int | None = None
    longest: int = LOOKUP_TOKENS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of each text's rounds; the pass over the prompt is no target call.

    Attributes:
      target_calls: [B], rounds.
      drafted: [B, D], rounds that drafted a token at this depth of the tree.
      accepted: [B, D], rounds that accepted a token at this depth, and so all before it.
      lengths: [B, D + 1], histogram of accepted tokens a round, from 0.
      draft_steps: passes of the draft, for all texts at once.
    """

    target_calls: Int[Array | np.ndarray, " B"]
    drafted: Int[Array | np.ndarray, "B D"]
    accepted: Int[Array | np.ndarray, "B D"]
    lengths: Int[Array | np.ndarray, "B D1"]
    draft_steps: Int[Array | np.ndarray, ""]


class LoopState(NamedTuple):
    """The carry of the loop: texts, the origin of each token [B, T], and counts."""

    texts: Texts
    origin: Int[Array, "B T"]
    counts: Counts


@functools.partial(jax.jit, static_argnames=("plan", "graphs", "stream"))
def run(
    plan: DraftPlan,
    graphs: tuple,
    params: tuple,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    limits: Int[Array, " B"],
    sampling: BatchSampling,
    *,
    stream: Callable | None,
) -> LoopState:
    """Decodes until every text has ended.

    Args:
      plan: static arguments.
      graphs, params: from `nnx.split` of target and student; of the target alone if no model
        drafts.
      prompts: [B, P] int32; tokens beyond a prompt's length are undefined.
      lengths: [B], of the prompts, at least 1.
      limits: [B], lengths at which the texts end, at most `plan.slots`.
      sampling: temperatures, cuts, randomness and threshold.
      stream: called after each round, in order, with (tokens [B, T], lengths before [B] and after
        [B], origin [B, T]).
    """
    models = [nnx.merge(*part) for part in zip(graphs, params, strict=True)]
    draft = make_draft(plan, models, sampling.eta)

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
    """Returns the draft of `plan`; `models` are the target and, if a model drafts, the student."""
    target = models[0].unrolled()
    if plan.kind in ("lookup", "none"):
        return Lookup(target, plan.tree.depth, plan.longest)
    student, rule = models[1].unrolled(), rules.RULES[plan.rule]
    output = target.output().restrict(student.vocabulary)
    if plan.kind == "tree":
        return Branches(target, student, rule, output, plan.tree)
    return Chain(target, student, rule, output, plan.tree.depth, eta)


def begin(
    plan: DraftPlan,
    draft: Draft,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    limits: Int[Array, " B"],
) -> LoopState:
    """Reads all but the last token of each prompt.

    Entries of the caches beyond a short prompt are overwritten later.
    """
    batch, width = prompts.shape
    slots = plan.slots + plan.tree.size  # a round writes its drafts before it knows how many count
    target_cache = draft.target.init_cache(batch, slots)
    draft_cache = draft.init_cache(batch, slots)
    if width > 1:
        positions = jnp.broadcast_to(jnp.arange(width - 1), (batch, width - 1))
        hidden, _, target_cache, draft_cache = draft.read(
            prompts[:, :-1], target_cache, draft_cache, positions=positions
        )
        _, target_cache = _finish(draft, hidden, target_cache, positions=positions)
    tokens = jnp.zeros((batch, slots), jnp.int32).at[:, :width].set(prompts)
    texts = Texts(tokens, lengths, lengths < limits, target_cache, draft_cache)
    none, depth = jnp.zeros(batch, jnp.int32), plan.tree.depth
    by_depth = jnp.zeros((batch, depth), jnp.int32)
    counts = Counts(
        none, by_depth, by_depth, jnp.zeros((batch, depth + 1), jnp.int32), jnp.array(0)
    )
    return LoopState(texts, jnp.zeros(tokens.shape, jnp.int8), counts)


def _finish(draft: Draft, hidden: Array, cache: Cache, **where: Array) -> tuple[Array, Cache]:
    """Runs the target's layers after the exit layer on hidden states [B, L, D]."""
    return draft.target.run_layers(
        hidden, draft.exit_layer, draft.target.depth, cache=cache, **where
    )


def _round(
    plan: DraftPlan,
    draft: Draft,
    state: LoopState,
    limits: Int[Array, " B"],
    sampling: BatchSampling,
) -> LoopState:
    """Drafts, verifies with one target call, and appends the tokens."""
    texts = state.texts
    proposal = draft.propose(texts, sampling)
    verdict, target_cache = verify(plan, draft, texts.last, proposal, sampling)
    caches = target_cache, proposal.draft_cache
    if plan.kind == "tree":
        caches = _move_path(caches, texts.last, verdict.path)
    tokens, origin = _round_tokens(plan.tree, proposal, verdict)
    state = LoopState(
        texts._replace(target_cache=caches[0], draft_cache=caches[1]), state.origin, state.counts
    )
    return _append(plan, state, tokens, origin, verdict, proposal, limits)


def verify(
    plan: DraftPlan,
    draft: Draft,
    last: Int[Array, " B"],
    proposal: Proposal,
    sampling: BatchSampling,
) -> tuple[rules.Verdict, Cache]:
    """Runs the target on a round's drafts after position `last`.

    Returns the verdicts [B] and the target's cache.
    """
    tree = plan.tree
    slots = proposal.target_cache[0].keys.shape[1]
    where = places(tree, np.arange(tree.size + 1), last, slots)
    hidden, target_cache = _finish(draft, proposal.hidden, proposal.target_cache, **where)
    warp = jax.tree.map(lambda value: value[:, None], sampling.warp)  # the same for all nodes
    p = jax.nn.softmax(warps.warp(draft.target.logits(hidden), warp), axis=-1)
    verdict = jax.vmap(functools.partial(rules.walk, rules.RULES[plan.rule], tree))(
        tokens=proposal.tokens,
        valid=proposal.valid,
        p=p,
        q=proposal.q,
        position=last,
        keys=sampling.keys,
    )
    return verdict, target_cache


def _move_path(
    caches: tuple[Cache, Cache], last: Int[Array, " B"], path: Int[Array, "B D"]
) -> tuple[Cache, Cache]:
    """Moves the accepted nodes' entries from their slots, `last` + node, to the slots after `last`.

    The next round overwrites the entries of rejected nodes.
    """
    batch = path.shape[0]
    source, target = last[:, None] + path, last[:, None] + 1 + jnp.arange(path.shape[1])[None]

    def move(entries):
        heads = entries.shape[0] // batch
        rows = jnp.arange(entries.shape[0])[:, None]
        read, write = (jnp.repeat(slots, heads, axis=0) for slots in (source, target))
        return entries.at[rows, write].set(entries[rows, read])

    return jax.tree.map(move, caches)


def _round_tokens(
    tree: trees.Tree, proposal: Proposal, verdict: rules.Verdict
) -> tuple[Int[Array, "B D1"], Int8[Array, "B D1"]]:
    """Returns the round's tokens, of which accepted + 1 count, and their origins."""
    offsets = jnp.arange(tree.depth + 1)[None]
    accepted = verdict.accepted[:, None]
    drafted = jnp.take_along_axis(proposal.tokens, jnp.pad(verdict.path, ((0, 0), (0, 1))), axis=1)
    tokens = jnp.where(offsets < accepted, drafted, verdict.token[:, None])
    # After an accepted node without drafted children comes a bonus, else a correction.
    children = jnp.asarray(tree.children)
    end = jnp.max(verdict.path, axis=1, initial=0)
    after = jnp.take_along_axis(proposal.valid, jnp.maximum(children[end], 0), axis=1) & (
        children[end] > 0
    )
    target_origin = jnp.where(jnp.any(after, axis=1), CORRECTED, BONUS)
    origin = jnp.where(offsets < accepted, DRAFTED, target_origin[:, None])
    return tokens, origin.astype(jnp.int8)


def _append(
    plan: DraftPlan,
    state: LoopState,
    tokens: Int[Array, "B D1"],
    origin: Int8[Array, "B D1"],
    verdict: rules.Verdict,
    proposal: Proposal,
    limits: Int[Array, " B"],
) -> LoopState:
    """Appends the round's tokens to the texts, up to a stop token or the limit, and counts."""
    texts, counts = state.texts, state.counts
    length, active = texts.length, texts.active
    offsets = jnp.arange(tokens.shape[1])[None]
    count = jnp.minimum(verdict.accepted + 1, limits - length)
    stopped = jnp.zeros(active.shape, bool)
    if plan.stop is not None:
        is_stop = (tokens == plan.stop) & (offsets < count[:, None])
        stopped = jnp.any(is_stop, axis=1)
        count = jnp.where(stopped, jnp.argmax(is_stop, axis=1) + 1, count)
    # Writes to ended texts are dropped: their slots are beyond the array.
    slots = jnp.where(active[:, None], length[:, None] + offsets, texts.tokens.shape[1])
    rows = jnp.arange(tokens.shape[0])[:, None]
    length = jnp.where(active, length + count, length)
    levels = [
        jnp.any(proposal.valid[:, plan.tree.level(d + 1)], axis=1) for d in range(plan.tree.depth)
    ]
    accepted = jnp.arange(plan.tree.depth)[None] < verdict.accepted[:, None]
    running = active[:, None]
    counts = Counts(
        target_calls=counts.target_calls + active,
        drafted=counts.drafted
        + (running & jnp.stack(levels, axis=1) if levels else counts.drafted),
        accepted=counts.accepted + (running & accepted),
        lengths=counts.lengths + (running & (offsets == verdict.accepted[:, None])),
        draft_steps=counts.draft_steps + proposal.steps,
    )
    return LoopState(
        texts._replace(
            tokens=texts.tokens.at[rows, slots].set(tokens, mode="drop"),
            length=length,
            active=active & ~stopped & (length < limits),
        ),
        state.origin.at[rows, slots].set(origin, mode="drop"),
        counts,
    )
