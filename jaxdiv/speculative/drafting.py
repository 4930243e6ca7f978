"""Drafting of a round's proposals: by a model as chain or tree, or copied from the text itself."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiv import warps
from jaxdiv.models import Cache, Decoder, Drafter, TeacherOutput
from jaxdiv.speculative.rules import INDEPENDENT, AcceptanceRule, Keys
from jaxdiv.speculative.trees import Tree

LOOKUP_TOKENS = 3  # that `lookup` compares, at most


class Texts(NamedTuple):
    """The batch at the beginning of a round; target and draft have read all but each last token.

    Attributes:
      tokens: [B, T]; tokens beyond a text's length are undefined.
      length: [B].
      active: [B], whether a text goes on.
      target_cache, draft_cache: slot t is of position t. () for a draft without a cache.
    """

    tokens: Int[Array, "B T"]
    length: Int[Array, " B"]
    active: Bool[Array, " B"]
    target_cache: Cache
    draft_cache: Cache

    @property
    def last(self) -> Int[Array, " B"]:
        """Position of the last token, the root of this round's tree."""
        return self.length - 1


class Proposal(NamedTuple):
    """The drafts of a round, with the results of drafting. Node 0 is the text's last token.

    Attributes:
      tokens: [B, N + 1] of the nodes.
      valid: [B, N + 1], whether a node was drafted.
      q: [B, N + 1, V], the distribution of a node's children; None if the rule does not read it.
      hidden: [B, N + 1, D], the target's hidden states after its first `exit_layer` layers.
      target_cache, draft_cache: with the nodes in the slots from the root's position on.
      steps: number of passes of the draft.
    """

    tokens: Int[Array, "B N1"]
    valid: Bool[Array, "B N1"]
    q: Float[Array, "B N1 V"] | None
    hidden: Float[Array, "B N1 D"]
    target_cache: Cache
    draft_cache: Cache
    steps: Int[Array, ""]


class BatchSampling(NamedTuple):
    """Arguments of drawing that are traced.

    Attributes:
      warp: temperature and cuts of each text, arrays [B].
      keys: randomness of each text, [B].
      eta: threshold of a chain; see `Chain`.
    """

    warp: warps.Warp
    keys: Keys
    eta: float | Array = 0.0


def places(tree: Tree, nodes: np.ndarray, last: Int[Array, " B"], slots: int) -> dict[str, Array]:
    """Returns positions, slots and visibility of a tree's nodes, as of `layers.layout`.

    A node sees the text and its ancestors.

    Args:
      tree: of the round.
      nodes: [n], consecutive numbers of nodes.
      last: [B], the root's position.
      slots: T, the cache's length.
    """
    positions = last[:, None] + jnp.asarray(tree.depths)[nodes][None]
    node_at = jnp.arange(slots)[None, :] - last[:, None]
    inside = (node_at >= 0) & (node_at <= tree.size)
    node = jnp.clip(node_at, 0, tree.size)
    ancestors = jnp.asarray(tree.ancestors)[nodes][:, node]
    depth_at = jnp.where(inside, jnp.asarray(tree.depths)[node], node_at)
    return {
        "positions": positions,
        "slot_positions": last[:, None] + depth_at,
        "slots": last[:, None] + jnp.asarray(nodes)[None],
        "visible": jnp.where(inside[:, None], ancestors.swapaxes(0, 1), node_at[:, None] < 0),
    }


@dataclasses.dataclass(frozen=True)
class ModelDraft:
    """A draft by a student, which may read the target's first layers.

    Attributes:
      target, student: the models.
      rule: how drafts are accepted.
      output: what the student takes from the target, computed before the loop over rounds.
    """

    target: Decoder
    student: Drafter
    rule: AcceptanceRule
    output: TeacherOutput

    @property
    def exit_layer(self) -> int:
        return self.student.exit_layer or 0

    def init_cache(self, batch: int, length: int) -> Cache:
        return self.student.init_cache(batch, length)

    def read(
        self, tokens: Int[Array, "B L"], target_cache: Cache, draft_cache: Cache, **where: Array
    ) -> tuple[Array, Array, Cache, Cache]:
        """Runs the target up to the exit layer, and the student, on tokens [B, L].

        Returns:
          The target's hidden states [B, L, D], the student's features [B, L, D'], both caches.
        """
        hidden = self.target.embed(tokens)
        hidden, target_cache = self.target.run_layers(
            hidden, 0, self.exit_layer, cache=target_cache, **where
        )
        features, draft_cache = self.student.extend(tokens, hidden, draft_cache, **where)
        return hidden, features, target_cache, draft_cache

    def logits(self, features: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        return self.student.logits(features, self.output)

    def candidates(
        self,
        logits: Float[Array, "B V"],
        sampling: BatchSampling,
        positions: Int[Array, " B"],
        node: int,
        count: int,
    ) -> tuple[Int[Array, "B count"], Float[Array, "B V"]]:
        """Draws `count` candidates after a node at `positions`, and returns them with q.

        They are samples of q without replacement; at temperature 0, or if the rule takes the
        likeliest, they are the largest logits.
        """

        def one(logits, warp, keys, position):
            warped = warps.warp(logits, warp)
            order = logits
            if self.rule.noise is not None:
                key = (
                    keys.draft(position, node)
                    if self.rule.noise == INDEPENDENT
                    else keys.target(position)
                )
                order = jnp.where(warp.temperature == 0, logits, warped + warps.noise(key, warped))
            if count == 1:
                largest = jnp.argmax(order, axis=-1, keepdims=True)
            else:
                largest = jax.lax.top_k(order, count)[1]
            return largest.astype(jnp.int32), jax.nn.softmax(warped, axis=-1)

        return jax.vmap(one)(logits, sampling.warp, sampling.keys, positions)


@dataclasses.dataclass(frozen=True)
class Chain(ModelDraft):
    """Drafts tokens one after the other until the draft is unsure (double early exit, 2404.18911).

    Attributes:
      gamma: drafts a round at most, at least 1.
      eta: drafting stops after a token at whose position the draft's largest probability, at
        temperature 1, was below eta; that token is verified too. A traced number; 0 never stops.
    """

    gamma: int
    eta: Array

    def propose(self, texts: Texts, sampling: BatchSampling) -> Proposal:
        """Drafts a round."""
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
        # The last draft is read as well: both caches need it if it is accepted.
        _, hidden, caches = read(steps, tokens, hidden, caches)
        valid = jnp.arange(self.gamma + 1)[None] <= count[:, None]
        return Proposal(tokens, valid, q, hidden, *caches, steps=steps)


@dataclasses.dataclass(frozen=True)
class Branches(ModelDraft):
    """Drafts the nodes of a tree, level by level."""

    tree: Tree

    def propose(self, texts: Texts, sampling: BatchSampling) -> Proposal:
        """Drafts a round."""
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
            if depth == tree.depth:
                q.append(jnp.zeros((*new.shape[:2], self.target.vocab_size), jnp.float32))
                break
            logits, drafted = self.logits(features), []
            for i, node in enumerate(nodes):
                count = int((tree.children[node] > 0).sum())
                children, q_node = self.candidates(
                    logits[:, i], sampling, last + depth, int(node), max(count, 1)
                )
                drafted.append(children[:, :count])
                q.append(q_node[:, None])
            tokens.append(jnp.concatenate(drafted, axis=1))
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


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Drafts a copy of the tokens that followed an earlier occurrence of the text's last tokens.

    This is prompt lookup, a draft without training. The occurrence is the latest of those that
    repeat the most of the last `longest` tokens. If fewer than gamma tokens followed it, they are
    copied again and again. If no token repeats, nothing is drafted.

    Attributes:
      target: the target.
      gamma: drafts a round; 0 is plain decoding.
      longest: tokens to compare, at most.
    """

    target: Decoder
    gamma: int
    longest: int = LOOKUP_TOKENS
    exit_layer = 0

    def init_cache(self, batch: int, length: int) -> Cache:
        return ()

    def read(
        self, tokens: Int[Array, "B L"], target_cache: Cache, draft_cache: Cache, **where: Array
    ) -> tuple[Array, None, Cache, Cache]:
        """Returns what `ModelDraft.read` returns, without features."""
        return self.target.embed(tokens), None, target_cache, draft_cache

    def propose(self, texts: Texts, sampling: BatchSampling) -> Proposal:
        """Drafts a round."""
        matches, origin = jax.vmap(self._find)(texts.tokens, texts.length)
        origin, nodes = origin[:, None], jnp.arange(self.gamma + 1)[None]
        copied = origin + (nodes - 1) % (texts.length[:, None] - origin)
        tokens = jnp.take_along_axis(
            texts.tokens, jnp.where(nodes == 0, texts.last[:, None], copied), axis=1
        )
        valid = (nodes == 0) | matches[:, None]
        hidden = self.target.embed(tokens)
        return Proposal(
            tokens, valid, None, hidden, texts.target_cache, texts.draft_cache, steps=jnp.array(0)
        )

    def _find(
        self, tokens: Int[Array, " T"], length: Int[Array, ""]
    ) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        """Returns whether the end of a text occurred before, and the position after that."""
        starts = jnp.arange(tokens.shape[0])  # a match ends just before one
        same, run = jnp.zeros_like(starts), jnp.ones(starts.shape, bool)
        for back in range(1, self.longest + 1):
            equal = tokens[length - back] == jnp.roll(tokens, back)
            run = run & equal & (starts >= back) & (length >= back)
            same = same + run
        same = jnp.where(starts < length, same, 0)
        best = jnp.argmax(same * tokens.shape[0] + starts * (same > 0))
        return same[best] > 0, best


Draft = Chain | Branches | Lookup
