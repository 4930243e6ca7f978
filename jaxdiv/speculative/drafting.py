"""What a round proposes: drafts of a model, one after the other or as a tree, or copied from the
text itself."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiv import warps
from jaxdiv.models import Cache, Decoder, Drafter
from jaxdiv.speculative.rules import AcceptanceRule, Keys
from jaxdiv.speculative.trees import Tree


class Texts(NamedTuple):
    """The batch as a round finds it: of each text, all but the last token have been read by target
    and draft.

    Attributes:
      tokens: [B, T]; what lies behind a text's length means nothing.
      length: [B].
      active: [B], whether a text goes on.
      target_cache, draft_cache: slot t holds what was read at position t. A draft that has no cache
        has ().
    """

    tokens: Int[Array, "B T"]
    length: Int[Array, " B"]
    active: Bool[Array, " B"]
    target_cache: Cache
    draft_cache: Cache

    @property
    def last(self) -> Int[Array, " B"]:
        """The position of the last token: the root of this round's tree."""
        return self.length - 1


class Proposal(NamedTuple):
    """The drafts of a round and what was computed for them. Node 0 is the text's last token.

    Attributes:
      tokens: [B, N + 1] of the nodes.
      valid: [B, N + 1], whether a node was drafted.
      q: [B, N + 1, V], what its children were drawn from; None if the rule does not ask.
      hidden: [B, N + 1, D], the target's after its first `exit_layer` layers.
      target_cache, draft_cache: with the nodes in the slots from the root's position on.
      steps: how many times the draft ran.
    """

    tokens: Int[Array, "B N1"]
    valid: Bool[Array, "B N1"]
    q: Float[Array, "B N1 V"] | None
    hidden: Float[Array, "B N1 D"]
    target_cache: Cache
    draft_cache: Cache
    steps: Int[Array, ""]


class BatchSampling(NamedTuple):
    """How the texts are drawn: `how` [B] each, `keys` [B]."""

    how: warps.Warp
    keys: Keys


def places(tree: Tree, nodes, last: Int[Array, " B"], slots: int) -> dict:
    """Where a tree's nodes stand, as `Decoder.run_layers` takes it: on their slot and seen by their
    descendants alone.

    Args:
      tree: the round's.
      nodes: consecutive numbers of nodes.
      last: [B], the root's position.
      slots: T, the cache's length.
    """
    positions = last[:, None] + jnp.asarray(tree.depths)[nodes][None]
    node_at = jnp.arange(slots)[None, :] - last[:, None]
    inside = (node_at >= 0) & (node_at <= tree.size)
    seen = jnp.asarray(tree.ancestors)[nodes][:, jnp.clip(node_at, 0, tree.size)].swapaxes(0, 1)
    return {
        "positions": positions,
        "slots": last[:, None] + jnp.asarray(nodes)[None],
        "visible": jnp.where(inside[:, None], seen, node_at[:, None] < 0),
    }


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """A student drafts: Kangaroo's adapter on the target's first layers, or a decoder of its
    own."""

    target: Decoder
    student: Drafter
    rule: AcceptanceRule

    @property
    def exit_layer(self) -> int:
        return self.student.exit_layer or 0

    def init_cache(self, batch: int, length: int) -> Cache:
        return self.student.init_cache(batch, length)

    def read(self, tokens, target_cache, draft_cache, **where):
        """Runs target and student up to where they part, on tokens [B, L].

        Returns:
          (hidden [B, L, D] of the target, features [B, L, D'] of the student, both caches).
        """
        hidden = self.target.embed(tokens)
        hidden, target_cache = self.target.run_layers(
            hidden, 0, self.exit_layer, cache=target_cache, **where
        )
        features, draft_cache = self.student.extend(tokens, hidden, draft_cache, **where)
        return hidden, features, target_cache, draft_cache

    def logits(self, features: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        return self.student.logits(features, self.target.output())

    def candidates(self, logits, sampling, positions, node, count):
        """The `count` first candidates after nodes at `positions` [B], of logits [B, V]: (tokens
        [B, count], q [B, V]).

        At temperature 0, and if the rule wants the likeliest, they are the largest logits; else
        samples of q without replacement.
        """

        def one(logits, how, keys, position):
            warped = warps.warp(logits, how)
            order = logits
            if self.rule.noise is not None:
                key = (
                    keys.draft(position, node)
                    if self.rule.noise == "own"
                    else keys.target(position)
                )
                order = jnp.where(how.temperature == 0, logits, warped + warps.noise(key, warped))
            return _largest(order, count), jax.nn.softmax(warped, axis=-1)

        return jax.vmap(one)(logits, sampling.how, sampling.keys, positions)


@dataclasses.dataclass(frozen=True)
class Chain(ModelDraft):
    """Drafts one after the other, up to gamma, until the draft is unsure (double early exit, arXiv
    2404.18911).

    Attributes:
      gamma: drafts a round at most, at least 1.
      eta: drafting stops after the token at whose position the draft's largest probability, at
        temperature 1, was below; that token is kept. A traced number; 0 never stops.
    """

    gamma: int
    eta: Array

    def propose(self, texts: Texts, sampling: BatchSampling) -> Proposal:
        batch, last = texts.length.shape[0], texts.last
        first = jnp.take_along_axis(texts.tokens, last[:, None], axis=1)[:, 0]
        tokens = jnp.zeros((batch, self.gamma + 1), jnp.int32).at[:, 0].set(first)
        hidden = jnp.zeros(
            (batch, self.gamma + 1, self.target.embedding.shape[1]), self.target.dtype
        )
        shape = (batch, self.gamma + 1, self.target.vocab_size)
        q = jnp.zeros(shape, jnp.float32) if self.rule.keeps_q else None

        def read(j, tokens, hidden, caches):
            token = jax.lax.dynamic_slice_in_dim(tokens, j, 1, axis=1)
            new, features, *caches = self.read(token, *caches, positions=(last + j)[:, None])
            return (
                features,
                jax.lax.dynamic_update_slice_in_dim(hidden, new, j, axis=1),
                tuple(caches),
            )

        def going(carry):
            j, sure, *_ = carry
            return (j < self.gamma) & jnp.any(sure)

        def step(carry):
            j, sure, count, tokens, q, hidden, caches = carry
            features, hidden, caches = read(j, tokens, hidden, caches)
            logits = self.logits(features)[:, 0]
            drafted, q_j = self.candidates(logits, sampling, last + j, 0, 1)
            tokens = jax.lax.dynamic_update_slice_in_dim(tokens, drafted, j + 1, axis=1)
            if q is not None:
                q = jax.lax.dynamic_update_slice_in_dim(q, q_j[:, None], j, axis=1)
            count = jnp.where(sure, j + 1, count)
            confidence = jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))
            return j + 1, sure & (confidence >= self.eta), count, tokens, q, hidden, caches

        caches = (texts.target_cache, texts.draft_cache)
        start = (jnp.array(0), texts.active, jnp.zeros(batch, jnp.int32), tokens, q, hidden, caches)
        steps, _, count, tokens, q, hidden, caches = jax.lax.while_loop(going, step, start)
        # The last draft is read as well: target and draft need it behind them if it is accepted.
        _, hidden, caches = read(steps, tokens, hidden, caches)
        valid = jnp.arange(self.gamma + 1)[None] <= count[:, None]
        return Proposal(tokens, valid, q, hidden, *caches, steps=steps)


@dataclasses.dataclass(frozen=True)
class Branches(ModelDraft):
    """Drafts all nodes of a tree, level by level."""

    tree: Tree

    def propose(self, texts: Texts, sampling: BatchSampling) -> Proposal:
        tree, last = self.tree, texts.last
        slots = texts.tokens.shape[1]
        tokens = [jnp.take_along_axis(texts.tokens, last[:, None], axis=1)]
        hidden, q = [], []
        caches = (texts.target_cache, texts.draft_cache)
        for depth in range(tree.depth + 1):
            nodes = tree.level(depth)
            new, features, *caches = self.read(
                tokens[-1], *caches, **places(tree, nodes, last, slots)
            )
            hidden.append(new)
            children = tree.children[nodes]
            if (children > 0).any():
                drafted, q_level = self._level(
                    self.logits(features), sampling, last + depth, nodes, children
                )
                tokens.append(drafted)
                q.append(q_level)
            else:
                q.append(jnp.zeros((*new.shape[:2], self.target.vocab_size), jnp.float32))
        tokens, hidden, q = (jnp.concatenate(parts, axis=1) for parts in (tokens, hidden, q))
        valid = jnp.broadcast_to(texts.active[:, None], tokens.shape)
        return Proposal(
            tokens,
            valid,
            q if self.rule.keeps_q else None,
            hidden,
            *caches,
            steps=jnp.array(tree.depth),
        )

    def _level(self, logits, sampling, positions, nodes, children):
        """The children's tokens [B, n'] and the nodes' q [B, n, V], of the nodes' logits [B, n,
        V]."""
        drafted, q = [], []
        for i, node in enumerate(nodes):
            count = int((children[i] > 0).sum())
            tokens, q_node = self.candidates(
                logits[:, i], sampling, positions, int(node), max(count, 1)
            )
            drafted.append(tokens[:, :count])
            q.append(q_node)
        return jnp.concatenate(drafted, axis=1), jnp.stack(q, axis=1)


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Drafts what followed the text's last tokens where they stood before: prompt lookup, a draft
    without training.

    Of the earlier places that repeat the most of the last `longest` tokens, the latest. Where what
    followed it ends before gamma tokens, it is copied again and again. Without one token that
    repeats, nothing is drafted.

    Attributes:
      target: the target.
      gamma: drafts a round; 0 is plain decoding.
      longest: tokens compared, at most.
    """

    target: Decoder
    gamma: int
    longest: int = 3
    exit_layer = 0

    def init_cache(self, batch: int, length: int) -> Cache:
        return ()

    def read(self, tokens, target_cache, draft_cache, **where):
        """As `ModelDraft.read`, without a draft."""
        return self.target.embed(tokens), None, target_cache, draft_cache

    def propose(self, texts: Texts, sampling: BatchSampling) -> Proposal:
        found, origin = jax.vmap(self._find)(texts.tokens, texts.length)
        origin, nodes = origin[:, None], jnp.arange(self.gamma + 1)[None]
        copied = origin + (nodes - 1) % (texts.length[:, None] - origin)
        tokens = jnp.take_along_axis(
            texts.tokens, jnp.where(nodes == 0, texts.last[:, None], copied), axis=1
        )
        valid = (nodes == 0) | found[:, None]
        hidden = self.target.embed(tokens)
        return Proposal(
            tokens, valid, None, hidden, texts.target_cache, texts.draft_cache, steps=jnp.array(0)
        )

    def _find(self, tokens, length):
        """Whether a place was found, and the position behind it."""
        starts = jnp.arange(tokens.shape[0])  # a match ends just before one
        same, run = jnp.zeros_like(starts), jnp.ones(starts.shape, bool)
        for back in range(1, self.longest + 1):
            here, there = tokens[length - back], jnp.roll(tokens, back)
            run = run & (here == there) & (starts >= back) & (length >= back)
            same = same + run
        same = jnp.where(starts < length, same, 0)
        best = jnp.argmax(same * tokens.shape[0] + starts * (same > 0))
        return same[best] > 0, best


Draft = Chain | Branches | Lookup


def _largest(order, count):
    if count == 1:
        return jnp.argmax(order, axis=-1, keepdims=True).astype(jnp.int32)
    return jax.lax.top_k(order, count)[1].astype(jnp.int32)
