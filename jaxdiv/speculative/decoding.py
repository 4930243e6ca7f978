"""Lossless speculative decoding of a batch of prompts."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiv import warps
from jaxdiv.models import Decoder, DecoderStudent, KangarooAdapter, Student
from jaxdiv.speculative import loop, rules, trees
from jaxdiv.speculative.drafting import Sampling

LOOKUP = "lookup"
MAX_GAMMA = 64
MAX_TOKENS = 2**20  # of all texts together; each takes a slot in every layer's cache
MAX_PROBABILITIES = 2**31  # of a round, the draft's included: 8 GiB, and beyond it 32 bits don't count an array


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


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A decoding whose arguments were checked; nothing is compiled yet."""

    plan: loop.Plan
    graphs: tuple
    arrays: tuple
    lengths: np.ndarray
    stream: Callable | None

    def run(self) -> Decoded:
        """Decodes, by what an earlier decoding of the same shapes compiled if there was one."""
        return _decoded(loop.run(self.plan, self.graphs, *self.arrays, stream=self.stream), self.lengths)

    def compile(self) -> Callable[[], Decoded]:
        """What `run` does, compiled now."""
        compiled = loop.run.lower(self.plan, self.graphs, *self.arrays, stream=self.stream).compile()
        return lambda: _decoded(compiled(*self.arrays), self.lengths)


def decode(target: Decoder, draft: Student | str | None, prompts: Sequence[Sequence[int]], **options) -> Decoded:
    """Continues each prompt; the text's distribution is the target's own, unless the rule is lossy.

    Arguments and errors are those of `prepare`.
    """
    return prepare(target, draft, prompts, **options).run()


def prepare(
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
) -> Decoding:
    """Checks all that `decode` is asked for.

    Args:
      target: the model whose text it is.
      draft: a student, `lookup` (prompt lookup, drafts without a model), or None for plain decoding.
      prompts: tokens of each, at least one; lengths may differ.
      max_tokens: new tokens, for all or for each; with the prompts `MAX_TOKENS` in all.
      rule: of `rules.RULES`; for `lookup` all but `typical` are one.
      gamma: drafts a round, 1 to `MAX_GAMMA`, at most; a tree's depth must not exceed it.
      eta: in [0, 1]; a chain stops after a token at whose position the draft's largest probability was below (0.6 in
        Kangaroo, arXiv 2404.18911). 0 never stops; of a student alone.
      tree: candidates in place of a chain.
      temperature, top_k, top_p: as `warps.Warp`, for target and draft alike; for all or for each.
      stop: the token that ends a text.
      seeds: of each text; None for 0, 1, 2, ... A text depends on its seed and prompt, not on its neighbours.
      longest: tokens that `lookup` compares, at most.
      stream: called after each round with (tokens [B, T], lengths before it [B], lengths after it [B], origin [B, T]).

    Raises:
      ValueError: an argument out of its range.
    """
    plan_tree = _check_drafts(draft, rule, gamma, eta, tree)
    _check_models(target, draft, plan_tree)
    padded, lengths = _padded(prompts, vocab_size=target.head.shape[1])
    batch = len(lengths)
    limits = lengths + _wanted(max_tokens, lengths, plan_tree.size)
    kind = _kind(draft, tree)
    if kind in (LOOKUP, "none") and rules.RULES[rule].lossless:
        rule = "greedy_draft"  # what was not drawn is certain, and then the lossless rules are one
    _check_probabilities(batch, plan_tree, target.head.shape[1], rules.RULES[rule])
    plan = loop.Plan(kind=kind, tree=plan_tree, rule=rule, slots=int(limits.max()), stop=stop, longest=longest)
    keys = jax.vmap(jax.random.key)(_seeds(range(batch) if seeds is None else seeds, batch))
    sampling = Sampling(_how(batch, temperature, top_k, top_p, target.head.shape[1]), rules.Keys(keys))
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


def _check_drafts(draft, rule, gamma, eta, tree):
    """The tree of drafts of a round."""
    if rule not in rules.RULES:
        raise ValueError(f"`rule` must be one of {', '.join(rules.RULES)}, got {rule!r}")
    if draft is None:
        return trees.chain(0)
    if gamma < 1:
        raise ValueError(f"`gamma` must be at least 1, got {gamma}; without drafts, decode plainly.")
    if gamma > MAX_GAMMA:
        raise ValueError(f"`gamma` must be at most {MAX_GAMMA}, got {gamma}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must be in [0, 1], got {eta}; 0 never stops drafting.")
    if isinstance(draft, str) and draft != LOOKUP:
        raise ValueError(f"`draft` must be a student, {LOOKUP!r} or None, got {draft!r}")
    if draft == LOOKUP and eta > 0:
        raise ValueError("`eta` is of a student's confidence; `lookup` has none, so it must be 0.")
    if tree is None:
        return trees.chain(gamma)
    if draft == LOOKUP:
        raise ValueError("`lookup` drafts a chain; a tree needs a student.")
    if tree.depth > gamma:
        raise ValueError(f"the tree is {tree.depth} tokens deep, but `gamma` allows {gamma}; gamma={tree.depth} fits.")
    if eta > 0:
        raise ValueError("`eta` ends a chain; with a tree it must be 0.")
    return tree


def _check_models(target, draft, tree):
    """The draft fits the target, and the tree the vocabulary."""
    width, vocab_size = target.head.shape
    if isinstance(draft, KangarooAdapter):
        theirs = draft.attention.qkv.kernel.shape[0]
        if theirs != width or draft.exit_layer > target.depth:
            raise ValueError(
                f"the draft reads layer {draft.exit_layer} of width {theirs}, "
                f"but the target has {target.depth} layers of width {width}; it is another model's."
            )
    elif isinstance(draft, DecoderStudent) and draft.decoder.head.shape[1] != vocab_size:
        raise ValueError(
            f"the draft has {draft.decoder.head.shape[1]} tokens and the target {vocab_size}; both need one tokenizer."
        )
    if tree.children.shape[1] > vocab_size:
        raise ValueError(f"the tree is {tree.children.shape[1]} tokens wide, but there are only {vocab_size}.")


def _check_probabilities(batch, tree, vocab_size, rule):
    """A round's distributions fit in memory."""
    count = batch * (tree.size + 1) * vocab_size * (2 if rule.keeps_q else 1)
    if count > MAX_PROBABILITIES:
        held = "target and draft" if rule.keeps_q else "the target"
        raise ValueError(
            f"{batch} texts of {tree.size} drafts a round over {vocab_size:,} tokens need {count:,} probabilities of "
            f"{held}, more than {MAX_PROBABILITIES:,}; decode fewer texts at once or draft less"
        )


def _padded(prompts, vocab_size):
    """(prompts [B, P], their lengths [B])."""
    prompts = [np.asarray(prompt, np.int64) for prompt in prompts]
    if not prompts or not min(map(len, prompts)):
        raise ValueError("each prompt must have at least one token")
    for i, prompt in enumerate(prompts):
        if prompt.min() < 0 or prompt.max() >= vocab_size:
            raise ValueError(f"prompt {i} has tokens {prompt.min()}..{prompt.max()}, not in 0..{vocab_size - 1}")
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    padded = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return padded, lengths


def _wanted(max_tokens, lengths, drafts):
    """The new tokens of each text [B]."""
    wanted = [int(value) for value in _values("max_tokens", max_tokens, len(lengths))]
    if min(wanted) < 1:
        raise ValueError(f"`max_tokens` must be at least 1, got {min(wanted)}")
    slots = int(lengths.max()) + max(wanted) + drafts
    if slots * len(lengths) > MAX_TOKENS:
        raise ValueError(
            f"{len(lengths)} texts of up to {slots:,} tokens are more than {MAX_TOKENS:,} together; "
            f"lower `max_tokens` or decode fewer at once"
        )
    return np.broadcast_to(np.array(wanted, np.int32), lengths.shape)


def _seeds(seeds, batch):
    seeds = [int(seed) for seed in seeds]
    if len(seeds) != batch or min(seeds) < 0 or max(seeds) >= 2**32:
        raise ValueError(f"`seeds` must be {batch} whole numbers in 0..2**32 - 1, one a text, got {seeds[:4]}")
    return jnp.array(seeds, jnp.uint32)


def _how(batch, temperature, top_k, top_p, vocab_size):
    """The warp with arrays [B]."""
    temperature = _values("temperature", temperature, batch)
    for value in temperature:
        warps.check_temperature(float(value))
    if top_k is not None:
        top_k = _values("top_k", top_k, batch)
        for value in top_k:
            warps.check_cuts(int(value), None)
        top_k = [min(int(value), vocab_size) for value in top_k]
    if top_p is not None:
        top_p = _values("top_p", top_p, batch)
        for value in top_p:
            warps.check_cuts(None, float(value))

    def each(value, dtype):
        return None if value is None else jnp.broadcast_to(jnp.asarray(value, dtype), (batch,))

    return warps.Warp(each(temperature, jnp.float32), each(top_k, jnp.int32), each(top_p, jnp.float32))


def _values(name, given, batch):
    """One value, or one for each text: [1] or [B]."""
    values = np.ravel(given)
    if len(values) not in (1, batch):
        raise ValueError(f"`{name}` has {len(values)} values for {batch} texts; give one for all, or one for each.")
    return values


def _decoded(state, lengths):
    tokens, ends, origin = (np.asarray(x) for x in (state.texts.tokens, state.texts.length, state.origin))
    spans = [slice(start, end) for start, end in zip(lengths, ends, strict=True)]
    return Decoded(
        tokens=[row[span] for row, span in zip(tokens, spans, strict=True)],
        origin=[row[span] for row, span in zip(origin, spans, strict=True)],
        counts=jax.tree.map(np.asarray, state.counts),
    )
