"""Lossless speculative decoding of a batch of prompts."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiv.models import Decoder, Drafter
from jaxdiv.speculative import arguments, decoding_loop, rules, trees
from jaxdiv.speculative.arguments import LOOKUP
from jaxdiv.speculative.drafting import BatchSampling


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What was decoded.

    Attributes:
      tokens: the new tokens of each prompt, the stop token included.
      origin: where each comes from: `decoding_loop.DRAFTED`, `CORRECTED` (in place of a draft that was
        refused) or `BONUS` (after the last draft).
      counts: of the rounds.
    """

    tokens: list[np.ndarray]
    origin: list[np.ndarray]
    counts: decoding_loop.Counts

    @property
    def tokens_per_call(self) -> float:
        """Over all texts, pooled."""
        return sum(map(len, self.tokens)) / max(int(np.sum(self.counts.target_calls)), 1)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A decoding whose arguments were checked; nothing is compiled yet."""

    plan: decoding_loop.DraftPlan
    graphs: tuple
    arrays: tuple
    lengths: np.ndarray
    stream: Callable | None

    def run(self) -> Decoded:
        """Decodes, by what an earlier decoding of the same shapes compiled if there was one."""
        return _decoded(
            decoding_loop.run(self.plan, self.graphs, *self.arrays, stream=self.stream),
            self.lengths,
        )

    def compile(self) -> Callable[[], Decoded]:
        """What `run` does, compiled now."""
        compiled = decoding_loop.run.lower(
            self.plan, self.graphs, *self.arrays, stream=self.stream
        ).compile()
        return lambda: _decoded(compiled(*self.arrays), self.lengths)


def decode(
    target: Decoder, draft: Drafter | str | None, prompts: Sequence[Sequence[int]], **options
) -> Decoded:
    """Continues each prompt; the text's distribution is the target's own, unless the rule is lossy.

    Arguments and errors are those of `prepare`.
    """
    return prepare(target, draft, prompts, **options).run()


def prepare(
    target: Decoder,
    draft: Drafter | str | None,
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
) -> Decoding:
    """Checks all that `decode` is asked for.

    Args:
      target: the model whose text it is.
      draft: a student, `lookup` (prompt lookup, drafts without a model), or None for plain
        decoding.
      prompts: tokens of each, at least one; lengths may differ.
      max_tokens: new tokens, for all or for each; with the prompts `arguments.MAX_TOKENS` in all.
      rule: of `rules.RULES`; for `lookup` all but `typical` are one.
      gamma: drafts a round, 1 to `arguments.MAX_GAMMA`, at most; a tree's depth must not exceed it.
      eta: in [0, 1]; a chain stops after a token at whose position the draft's largest probability
        was below (0.6 in Kangaroo, arXiv 2404.18911). 0 never stops; of a student alone.
      tree: candidates in place of a chain.
      temperature, top_k, top_p: as `warps.Warp`, for target and draft alike; for all or for each.
      stop: the token that ends a text.
      seeds: of each text; None for 0, 1, 2, ... A text depends on its seed and prompt, not on its
        neighbours.
      longest: tokens that `lookup` compares, at most.
      stream: called after each round with (tokens [B, T], lengths before it [B], lengths after it
        [B], origin [B, T]).

    Raises:
      ValueError: an argument out of its range.
    """
    vocab_size = target.vocab_size
    plan_tree = arguments.tree_of(draft, rule, gamma, eta, tree)
    arguments.check_models(target, draft, plan_tree)
    padded, lengths = arguments.padded(prompts, vocab_size)
    batch = len(lengths)
    limits = lengths + arguments.wanted(max_tokens, lengths, plan_tree.size)
    kind = _kind(draft, tree)
    if kind in (LOOKUP, "none") and rules.RULES[rule].lossless:
        rule = "greedy_draft"  # what was not drawn is certain, and then the lossless rules are one
    arguments.check_memory(target, padded.shape, plan_tree, rules.RULES[rule])
    plan = decoding_loop.DraftPlan(
        kind=kind,
        tree=plan_tree,
        rule=rule,
        slots=int(limits.max()),
        stop=None if stop is None else arguments.whole("stop", stop, low=0, high=vocab_size - 1),
        longest=arguments.whole("longest", longest, low=1),
    )
    keys = jax.vmap(jax.random.key)(
        arguments.seeds_of(range(batch) if seeds is None else seeds, batch)
    )
    how = arguments.warp_of(batch, vocab_size, temperature=temperature, top_k=top_k, top_p=top_p)
    sampling = BatchSampling(how, rules.Keys(keys))
    parts = [nnx.split(model) for model in (target, draft) if isinstance(model, nnx.Module)]
    graphs, params = zip(*parts, strict=True)
    arrays = (params, padded, lengths, limits, sampling, jnp.float32(eta))
    return Decoding(plan, graphs, arrays, lengths, stream)


def _kind(draft, tree):
    if draft is None:
        return "none"
    if draft == LOOKUP:
        return LOOKUP
    return "chain" if tree is None else "tree"


def _decoded(state, lengths):
    tokens, ends, origin = (
        np.asarray(x) for x in (state.texts.tokens, state.texts.length, state.origin)
    )
    spans = [slice(start, end) for start, end in zip(lengths, ends, strict=True)]
    return Decoded(
        tokens=[row[span] for row, span in zip(tokens, spans, strict=True)],
        origin=[row[span] for row, span in zip(origin, spans, strict=True)],
        counts=jax.tree.map(np.asarray, state.counts),
    )
