"""Lossless speculative decoding of a batch of prompts."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiv import warps
from jaxdiv.models import Decoder, Student
from jaxdiv.speculative import loop, rules, trees
from jaxdiv.speculative.drafting import Sampling

LOOKUP = "lookup"


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What was decoded.

    Attributes:
      tokens: the new tokens of each prompt, the stop token included.
      origin: where each comes from: `loop.DRAFTED`, `CORRECTED` (in place of a draft that was refused) or `BONUS`
        (after the last draft).
      counts: of the rounds.
    """

    tokens: list[np.ndarray]
    origin: list[np.ndarray]
    counts: loop.Counts

    @property
    def tokens_per_call(self) -> float:
        """Over all texts, pooled."""
        return sum(map(len, self.tokens)) / max(int(np.sum(self.counts.target_calls)), 1)


def decode(
    target: Decoder,
    draft: Student | str | None,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int | Sequence[int],
    rule: str = "sampling",
    gamma: int = 4,
    eta: float = 0.0,
    tree: trees.Tree | None = None,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] | None = None,
    top_p: float | Sequence[float] | None = None,
    stop: int | None = None,
    seeds: Sequence[int] | None = None,
    longest: int = 3,
    stream: Callable | None = None,
) -> Decoded:
    """Continues each prompt; the text's distribution is the target's own, unless the rule is lossy.

    Args:
      target: the model whose text it is.
      draft: a student, `lookup` (prompt lookup, drafts without a model), or None for plain decoding.
      prompts: tokens of each, at least one; lengths may differ.
      max_tokens: new tokens, for all or for each.
      rule: of `rules.RULES`; for `lookup` all but `typical` are one.
      gamma: drafts a round, at most; a tree's depth must not exceed it.
      eta: in [0, 1]; a chain stops after a token at whose position the draft's largest probability was below (0.6 in
        Kangaroo, arXiv 2404.18911). 0 never stops.
      tree: candidates in place of a chain.
      temperature, top_k, top_p: as `warps.Warp`, for target and draft alike; for all or for each.
      stop: the token that ends a text.
      seeds: of each text; None for 0, 1, 2, ... A text depends on its seed and prompt, not on its neighbours.
      longest: tokens that `lookup` compares, at most.
      stream: called after each round with (tokens [B, T], lengths before it [B], lengths after it [B]).

    Raises:
      ValueError: an argument out of its range.
    """
    prompts = [np.asarray(prompt, np.int32) for prompt in prompts]
    plan_tree = _check_drafts(draft, rule, gamma, eta, tree)
    batch, lengths = len(prompts), np.array([len(prompt) for prompt in prompts], np.int32)
    if batch == 0 or lengths.min() < 1:
        raise ValueError("each prompt must have at least one token")
    wanted = np.broadcast_to(np.asarray(max_tokens, np.int32), (batch,))
    if wanted.min() < 1:
        raise ValueError(f"`max_tokens` must be at least 1, got {wanted.min()}")
    limits = lengths + wanted
    padded = np.zeros((batch, lengths.max()), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    kind = _kind(draft, tree)
    if kind in (LOOKUP, "none") and rules.RULES[rule].lossless:
        rule = "greedy_draft"  # what was not drawn is certain, and then the lossless rules are one
    plan = loop.Plan(kind=kind, tree=plan_tree, rule=rule, slots=int(limits.max()), stop=stop, longest=longest)
    seeds = jnp.asarray(range(batch) if seeds is None else seeds, jnp.uint32)
    sampling = Sampling(_how(batch, temperature, top_k, top_p), rules.Keys(jax.vmap(jax.random.key)(seeds)))
    parts = [nnx.split(model) for model in (target, draft) if isinstance(model, nnx.Module)]
    graphs, params = zip(*parts, strict=True)
    state = loop.run(plan, graphs, params, padded, lengths, limits, sampling, jnp.float32(eta), stream=stream)
    return _decoded(state, lengths)


def _kind(draft, tree):
    if draft is None:
        return "none"
    if draft == LOOKUP:
        return LOOKUP
    return "chain" if tree is None else "tree"


def _check_drafts(draft, rule, gamma, eta, tree):
    """The tree of drafts of a round."""
    if rule not in rules.RULES:
        raise ValueError(f"`rule` must be one of {', '.join(rules.RULES)}, got {rule!r}")
    if draft is None:
        return trees.chain(0)
    if gamma < 1:
        raise ValueError(f"`gamma` must be at least 1, got {gamma}; without drafts, decode plainly.")
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must be in [0, 1], got {eta}; 0 never stops drafting.")
    if isinstance(draft, str) and draft != LOOKUP:
        raise ValueError(f"`draft` must be a student, {LOOKUP!r} or None, got {draft!r}")
    if tree is None:
        return trees.chain(gamma)
    if draft == LOOKUP:
        raise ValueError("`lookup` drafts a chain; a tree needs a student.")
    if tree.depth > gamma:
        raise ValueError(f"the tree is {tree.depth} tokens deep, but `gamma` allows {gamma}; gamma={tree.depth} fits.")
    if eta > 0:
        raise ValueError("`eta` ends a chain; with a tree it must be 0.")
    return tree


def _how(batch, temperature, top_k, top_p):
    """The warp with arrays [B]."""
    for value in np.ravel(temperature):
        warps.check_temperature(float(value))
    for value in [] if top_k is None else np.ravel(top_k):
        warps.check_cuts(int(value), None)
    for value in [] if top_p is None else np.ravel(top_p):
        warps.check_cuts(None, float(value))

    def each(value, dtype):
        return None if value is None else jnp.broadcast_to(jnp.asarray(value, dtype), (batch,))

    return warps.Warp(each(temperature, jnp.float32), each(top_k, jnp.int32), each(top_p, jnp.float32))


def _decoded(state, lengths):
    tokens, ends, origin = (np.asarray(x) for x in (state.texts.tokens, state.texts.length, state.origin))
    spans = [slice(start, end) for start, end in zip(lengths, ends, strict=True)]
    return Decoded(
        tokens=[row[span] for row, span in zip(tokens, spans, strict=True)],
        origin=[row[span] for row, span in zip(origin, spans, strict=True)],
        counts=jax.tree.map(np.asarray, state.counts),
    )
