"""Checks of a decoding's arguments before anything is compiled.

Each error is a ValueError of one line.
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiv import schema, warps
from jaxdiv.models import Decoder, Drafter
from jaxdiv.speculative import rules, trees

LOOKUP = "lookup"
MAX_TOKENS = 2**20  # of all texts together; each takes a slot in every layer's cache
MAX_NUMBERS = 2**31  # of one float32 array: 8 GiB, and the most that 32 bits can index


def resolve_tree(
    draft: Any, rule: str, gamma: Any, eta: Any, tree: trees.Tree | None
) -> trees.Tree:
    """Returns the tree of a round's drafts: `tree`, or a chain of `gamma`."""
    if rule not in rules.RULES:
        raise ValueError(f"`rule` must be one of {', '.join(rules.RULES)}, got {rule!r}")
    if draft is None:
        return trees.chain(0)
    if not isinstance(draft, Drafter) and draft != LOOKUP:
        raise ValueError(f"`draft` must be a student, {LOOKUP!r} or None, got {_short(draft)}")
    gamma = whole_number("gamma", gamma)
    if gamma < 1:
        raise ValueError(
            f"`gamma` must be at least 1, got {gamma}; without drafts, decode plainly."
        )
    if gamma > schema.MAX_DECODED_GAMMA:
        raise ValueError(f"`gamma` must be at most {schema.MAX_DECODED_GAMMA}, got {gamma}.")
    if not _is(eta, numbers.Real) or not 0 <= eta <= 1:
        raise ValueError(f"`eta` must be in [0, 1], got {eta}; 0 never stops drafting.")
    if draft == LOOKUP and eta > 0:
        raise ValueError("`eta` is of a student's confidence; `lookup` has none, so it must be 0.")
    if tree is None:
        return trees.chain(gamma)
    if draft == LOOKUP:
        raise ValueError("`lookup` drafts a chain; a tree needs a student.")
    if not isinstance(tree, trees.Tree):
        raise ValueError(
            f"`tree` must be a Tree, as speculative.parse makes of text, got {_short(tree)}"
        )
    if tree.depth > gamma:
        raise ValueError(
            f"the tree is {tree.depth} tokens deep, but `gamma` allows {gamma}; "
            f"gamma={tree.depth} fits."
        )
    if eta > 0:
        raise ValueError("`eta` ends a chain; with a tree it must be 0.")
    return tree


def check_models(target: Decoder, draft: Any, tree: trees.Tree) -> None:
    """Raises ValueError unless the draft fits the target, and the tree the vocabulary."""
    width, classes = tree.children.shape[1], target.vocab_size
    if isinstance(draft, Drafter):
        draft.check_target(target)
        classes = draft.vocabulary.size if draft.vocabulary else classes
    if width > classes:
        raise ValueError(f"the tree is {width} tokens wide, but there are only {classes}.")


def check_memory(
    target: Decoder, prompts: tuple[int, int], tree: trees.Tree, rule: rules.AcceptanceRule
) -> None:
    """Raises ValueError if a round's distributions or the prompts' attention are too large.

    `prompts` is the shape [B, P] of the padded prompts.
    """
    batch, longest = prompts
    vocab_size = target.vocab_size
    count = batch * (tree.size + 1) * vocab_size * (2 if rule.keeps_q else 1)
    if count > MAX_NUMBERS:
        models = "target and draft" if rule.keeps_q else "the target"
        raise ValueError(
            f"{batch} texts of {tree.size} drafts a round over {vocab_size:,} tokens need "
            f"{count:,} probabilities of {models}, more than {MAX_NUMBERS:,}; decode fewer texts "
            "at once or draft less"
        )
    heads = target.options.heads
    count = batch * heads * longest**2
    if count > MAX_NUMBERS:
        raise ValueError(
            f"{batch} prompts of up to {longest:,} tokens need {count:,} attention weights a "
            f"layer, more than {MAX_NUMBERS:,}; decode fewer texts at once or shorten the prompts"
        )


def pad_prompts(prompts: Sequence, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompts as int32 [B, P], filled up with zeros, and their lengths [B]."""
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows or any(row.ndim != 1 or not row.size for row in rows):
        raise ValueError("each prompt must have at least one token, and be a row of tokens")
    for i, row in enumerate(rows):
        if row.dtype.kind not in "iu":
            raise ValueError(f"prompt {i} must be whole numbers, got {_short(row.tolist())}")
        if row.min() < 0 or row.max() >= vocab_size:
            raise ValueError(
                f"prompt {i} has tokens {row.min()}..{row.max()}, not in 0..{vocab_size - 1}"
            )
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), lengths.max()), np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, lengths


def token_counts(max_tokens: Any, lengths: np.ndarray, drafts: int) -> np.ndarray:
    """Returns the number of new tokens of each text, int32 [B], for prompts of `lengths`."""
    counts = _values("max_tokens", max_tokens, len(lengths), numbers.Integral)
    if min(counts) < 1:
        raise ValueError(f"`max_tokens` must be at least 1, got {min(counts)}")
    slots = int(lengths.max()) + max(counts) + drafts
    if slots * len(lengths) > MAX_TOKENS:
        raise ValueError(
            f"{len(lengths)} texts of up to {slots:,} tokens are more than {MAX_TOKENS:,} "
            "together; lower `max_tokens` or decode fewer at once"
        )
    return np.broadcast_to(np.array(counts, np.int32), lengths.shape)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options of drawing, for all texts of a batch or for each, and the token that ends a text.

    Attributes:
      temperature, top_k, top_p: as in `warps.Warp`, for target and draft.
      stop: the token that ends a text; None for none.
      seeds: one a text; None for 0, 1, 2, ... A text depends on its seed and prompt, not on its
        neighbours.
    """

    temperature: float | Sequence[float] = 1.0
    top_k: int | Sequence[int] | None = None
    top_p: float | Sequence[float] | None = None
    stop: int | None = None
    seeds: Sequence[int] | None = None

    def seed_array(self, batch: int) -> jax.Array:
        """Returns the seeds as uint32 [B]. Raises ValueError unless there is one for each text."""
        values = np.ravel(range(batch) if self.seeds is None else self.seeds).tolist()
        if len(values) != batch or not all(
            _is(seed, numbers.Integral) and 0 <= seed < 2**32 for seed in values
        ):
            raise ValueError(
                f"`seeds` must be {batch} whole numbers in 0..2**32 - 1, one a text, got "
                f"{values[:4]}"
            )
        return jnp.array(values, jnp.uint32)

    def stop_token(self, vocab_size: int) -> int | None:
        """Returns `stop`. Raises ValueError unless it is a token."""
        return None if self.stop is None else whole_number("stop", self.stop, 0, vocab_size - 1)

    def batch_warp(self, batch: int, vocab_size: int) -> warps.Warp:
        """Returns the warp with one value a text: arrays [B], or None for unused cuts."""
        temperature = _values("temperature", self.temperature, batch, numbers.Real)
        for value in temperature:
            warps.check_temperature(value)
        top_k = top_p = None
        if self.top_k is not None:
            top_k = _values("top_k", self.top_k, batch, numbers.Integral)
            for value in top_k:
                warps.check_cuts(value, None)
            top_k = [min(value, vocab_size) for value in top_k]
        if self.top_p is not None:
            top_p = _values("top_p", self.top_p, batch, numbers.Real)
            for value in top_p:
                warps.check_cuts(None, value)
        columns = ((temperature, jnp.float32), (top_k, jnp.int32), (top_p, jnp.float32))
        return warps.Warp(
            *(
                None if values is None else jnp.broadcast_to(jnp.asarray(values, dtype), (batch,))
                for values, dtype in columns
            )
        )


def whole_number(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Returns `value` as a whole number, in low..high if these are set."""
    if isinstance(value, np.ndarray | np.generic | jax.Array) and value.ndim == 0:
        value = value.item()
    ends = f" in {low}..{'' if high is None else high}" if low is not None else ""
    if (
        not _is(value, numbers.Integral)
        or (low is not None and value < low)
        or (high is not None and value > high)
    ):
        raise ValueError(f"`{name}` must be a whole number{ends}, got {_short(value)}")
    return value


def _values(name: str, argument: Any, batch: int, kind: type) -> list:
    """Returns an argument's values, one for all texts or one for each: 1 or B numbers of `kind`."""
    values = np.ravel(argument).tolist()
    if len(values) not in (1, batch):
        raise ValueError(
            f"`{name}` has {len(values)} values for {batch} texts; give one for all, or one for "
            "each."
        )
    for value in values:
        if not _is(value, kind):
            words = "whole numbers" if kind is numbers.Integral else "numbers"
            raise ValueError(f"`{name}` must be {words}, got {_short(value)}")
    return values


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return repr(value)[:60]
