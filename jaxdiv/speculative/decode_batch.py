"""Lossless speculative decoding of a batch of prompts: the functions that a user calls."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiv import schema
from jaxdiv.models import Decoder, Drafter
from jaxdiv.speculative import arguments, decoding_loop, rules, trees
from jaxdiv.speculative.arguments import LOOKUP
from jaxdiv.speculative.drafting import LOOKUP_TOKENS, BatchSampling


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Texts of a decoding.

    Attributes:
      tokens: the new tokens of each prompt, the stop token included.
      origin: where each token comes from: `decoding_loop.DRAFTED`, `CORRECTED` (in place of a
        rejected draft) or `BONUS` (after the last draft).
      counts: of the rounds.
    """

    tokens: list[np.ndarray]
    origin: list[np.ndarray]
    counts: decoding_loop.Counts

    @property
    def tokens_per_call(self) -> float:
        """Tokens per target call, pooled over all texts."""
        return sum(map(len, self.tokens)) / max(int(np.sum(self.counts.target_calls)), 1)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A decoding with checked arguments; nothing is compiled yet."""

    plan: decoding_loop.DraftPlan
    graphs: tuple
    arrays: tuple
    lengths: np.ndarray
    stream: Callable | None

    def run(self) -> Decoded:
        """Decodes; reuses the program of an earlier decoding of the same shapes."""
        return _decoded(
            decoding_loop.run(self.plan, self.graphs, *self.arrays, stream=self.stream),
            self.lengths,
        )

    def compile(self) -> Callable[[], Decoded]:
        """Compiles now, and returns a function that does what `run` does."""
        program = decoding_loop.run.lower(
            self.plan, self.graphs, *self.arrays, stream=self.stream
        ).compile()
        return lambda: _decoded(program(*self.arrays), self.lengths)


def decode(
    target: Decoder, draft: Drafter | str | None, prompts: Sequence[Sequence[int]], **options
) -> Decoded:
    """Continues each prompt; the text has the target's distribution unless the rule is lossy.

    Arguments and errors are those of `prepare`.
    """
    return prepare(target, draft, prompts, **options).run()


def prepare(
    target: Decoder,
    draft: Drafter | str | None,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int | Sequence[int],
    rule: str = schema.SAMPLING,
    gamma: int = schema.HEADLINE_GAMMA,
    eta: float = 0.0,
    tree: trees.Tree | None = None,
    longest: int = LOOKUP_TOKENS,
    stream: Callable | None = None,
    **sampling: Any,
) -> Decoding:
    """Checks the arguments of `decode`.

    Args:
      target: the model whose text it is.
      draft: a student, `lookup` (prompt lookup, drafts without a model), or None for plain
        decoding.
      prompts: tokens of each, at least one; lengths may differ.
      max_tokens: new tokens, for all or for each; with the prompts `arguments.MAX_TOKENS` in all.
      rule: a name in `rules.RULES`; with `lookup` all but `typical` are one.
      gamma: drafts a round at most, 1 to `schema.MAX_DECODED_GAMMA`; a tree is at most as deep.
      eta: in [0, 1]; a chain stops after a token at whose position the draft's largest probability
        was below eta (0.6 in Kangaroo, arXiv 2404.18911). 0 never stops; needs a student.
      tree: candidates in place of a chain.
      longest: tokens that `lookup` compares, at most.
      stream: called after each round with (tokens [B, T], lengths before it [B], lengths after it
        [B], origin [B, T]).
      **sampling: `temperature`, `top_k`, `top_p`, `stop` and `seeds` of `Sampling`.

    Raises:
      ValueError: an argument is out of its range.
    """
    unknown = sampling.keys() - {field.name for field in dataclasses.fields(arguments.Sampling)}
    if unknown:
        raise TypeError(f"decode takes no argument {min(unknown)!r}.")
    options = arguments.Sampling(**sampling)
    vocab_size = target.vocab_size
    plan_tree = arguments.resolve_tree(draft, rule, gamma, eta, tree)
    arguments.check_models(target, draft, plan_tree)
    padded, lengths = arguments.pad_prompts(prompts, vocab_size)
    batch = len(lengths)
    limits = lengths + arguments.token_counts(max_tokens, lengths, plan_tree.size)
    if draft is None or draft == LOOKUP:
        kind = "none" if draft is None else LOOKUP
        # These drafts are not drawn but certain, and then the lossless rules are one.
        rule = schema.GREEDY_DRAFT if rules.RULES[rule].lossless else rule
    else:
        kind = "chain" if tree is None else "tree"
    arguments.check_memory(target, padded.shape, plan_tree, rules.RULES[rule])
    plan = decoding_loop.DraftPlan(
        kind=kind,
        tree=plan_tree,
        rule=rule,
        slots=int(limits.max()),
        stop=options.stop_token(vocab_size),
        longest=arguments.whole_number("longest", longest, low=1),
    )
    warp = options.batch_warp(batch, vocab_size)
    keys = rules.Keys(jax.vmap(jax.random.key)(options.seed_array(batch)))
    models = [model for model in (target, draft) if isinstance(model, nnx.Module)]
    graphs, params = zip(*map(nnx.split, models), strict=True)
    drawing = BatchSampling(warp, keys, jnp.float32(eta))
    arrays = (params, padded, lengths, limits, drawing)
    return Decoding(plan, graphs, arrays, lengths, stream)


def _decoded(state: decoding_loop.LoopState, lengths: np.ndarray) -> Decoded:
    """Cuts the new tokens out of the loop's arrays; `lengths` [B] are those of the prompts."""
    tokens, ends, origin = (
        np.asarray(x) for x in (state.texts.tokens, state.texts.length, state.origin)
    )
    spans = [slice(start, end) for start, end in zip(lengths, ends, strict=True)]
    return Decoded(
        tokens=[row[span] for row, span in zip(tokens, spans, strict=True)],
        origin=[row[span] for row, span in zip(origin, spans, strict=True)],
        counts=jax.tree.map(np.asarray, state.counts),
    )
