"""The time of a decoding by part: the prompt's pass, drafting and verification, timed apart.

A decoding is one compiled loop, in which no clock can stand. So it is decoded once, and then its
rounds are run again in two loops, one that only drafts and one that only verifies. The rounds go
from the last to the first: what a round leaves in the caches lies behind all that an earlier one
reads, so each drafts and accepts what it did before.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from experiments.common import timing
from jaxdiv.models import Cache
from jaxdiv.speculative import CORRECTED, Decoding, decoding_loop
from jaxdiv.speculative.drafting import Proposal, Texts
from jaxdiv.speculative.rules import Verdict

PROMPT, DRAFT, VERIFY = "prompt", "draft", "verify"
_MAX_ROUNDS = 32  # rounds in one loop
_MAX_PROBABILITIES = 2**26  # of drafts, in the rounds of one loop: 256 MiB


def milliseconds(decodings: Sequence[Decoding], *, repeats: int) -> list[dict[str, float]]:
    """Returns the median milliseconds of each decoding's parts.

    They are `prompt` for the pass over the prompts, and `draft` and `verify` for one round.

    Args:
      decodings: the decodings, timed in turns.
      repeats: timings of each part.
    """
    replays = [Replay.from_decoding(decoding) for decoding in decodings]
    calls = {}
    for i, replay in enumerate(replays):
        _, proposals = replay.propose()
        calls[i, PROMPT], calls[i, DRAFT] = replay.read_prompts, replay.propose
        calls[i, VERIFY] = functools.partial(replay.verify, proposals)
    seconds = timing.interleaved(calls, rounds=repeats)
    medians = [
        {name: 1e3 * float(np.median(seconds[i, name])) for name in (PROMPT, DRAFT, VERIFY)}
        for i in range(len(replays))
    ]
    for replay, median in zip(replays, medians, strict=True):
        median[DRAFT] /= len(replay.lengths)
        median[VERIFY] /= len(replay.lengths)
    return medians


def sentence(cost: dict[str, float]) -> str:
    """Returns the result of `milliseconds` for one decoding in words."""
    return (
        f"Timed apart, a round's drafting takes {cost[DRAFT]:.2f} ms and its verification "
        f"{cost[VERIFY]:.2f}; the prompt's pass {cost[PROMPT]:.2f} ms."
    )


@dataclasses.dataclass(frozen=True)
class Replay:
    """R of the K rounds of a finished decoding, evenly spaced, the last one first.

    A call returns all that it computes, or the compiler would leave it out.

    Attributes:
      decoding: with separate weights for each layer, so that no call has to take them out of the
        stacked ones.
      state: at the end of the decoding.
      lengths: of the texts at the start of each round, [R, B].
    """

    decoding: Decoding
    state: decoding_loop.LoopState
    lengths: np.ndarray

    @classmethod
    def from_decoding(cls, decoding: Decoding) -> "Replay":
        params, *arrays = decoding.arrays
        models = [nnx.merge(*part).unrolled() for part in zip(decoding.graphs, params, strict=True)]
        graphs, params = zip(*map(nnx.split, models), strict=True)
        decoding = dataclasses.replace(decoding, graphs=graphs, arrays=(params, *arrays))
        state = decoding_loop.run(decoding.plan, graphs, params, *arrays, stream=None)
        lengths = _lengths_by_round(state, decoding.lengths)
        probabilities = len(decoding.lengths) * (decoding.plan.tree.size + 1) * models[0].vocab_size
        count = max(1, min(_MAX_ROUNDS, len(lengths), _MAX_PROBABILITIES // probabilities))
        rounds = np.linspace(len(lengths) - 1, 0, count).round().astype(int)
        return cls(decoding, state, lengths[rounds])

    def read_prompts(self) -> decoding_loop.LoopState:
        """Returns the state after one pass over the prompts."""
        _, prompts, lengths, limits, *_ = self.decoding.arrays
        return self._run(_read_prompts, prompts, lengths, limits)

    def propose(self) -> tuple[tuple[Cache, Cache], Proposal]:
        """Returns (the caches of target and draft, the proposals [R, ...]) after R draftings.

        The proposals hold no caches.
        """
        texts = self.state.texts
        caches = texts.target_cache, texts.draft_cache
        active = self.lengths < np.asarray(texts.length)
        return self._run(_propose, caches, texts.tokens, (self.lengths, active))

    def verify(self, proposals: Proposal) -> tuple[Cache, Verdict]:
        """Returns (the target's cache, the verdicts [R, B, ...]) after R verifications."""
        rounds = self.lengths - 1, proposals
        return self._run(_verify, self.state.texts.target_cache, rounds)

    def _run(self, part, *arguments):
        # Temperatures and eta are traced, as in the decoding: as constants they would let the
        # compiler leave much out.
        params, *_, sampling = self.decoding.arrays
        models = self.decoding.graphs, params
        return _run(part, self.decoding.plan, *models, sampling, *arguments)


@functools.partial(jax.jit, static_argnames=("part", "plan", "graphs"))
def _run(part, plan, graphs, params, sampling, *arguments):
    models = [nnx.merge(*model) for model in zip(graphs, params, strict=True)]
    return part(plan, decoding_loop.make_draft(plan, models, sampling.eta), sampling, *arguments)


def _read_prompts(plan, draft, _, prompts, lengths, limits):
    return decoding_loop.begin(plan, draft, prompts, lengths, limits)


def _propose(_, draft, sampling, caches, tokens, rounds):
    def step(caches, texts):
        proposal = draft.propose(Texts(tokens, *texts, *caches), sampling)
        caches = proposal.target_cache, proposal.draft_cache
        return caches, proposal._replace(target_cache=(), draft_cache=())

    return jax.lax.scan(step, caches, rounds)


def _verify(plan, draft, sampling, cache, rounds):
    def step(cache, texts):
        last, proposal = texts
        proposal = proposal._replace(target_cache=cache)
        verdict, cache = decoding_loop.verify(plan, draft, last, proposal, sampling)
        return cache, verdict

    return jax.lax.scan(step, cache, rounds)


def _lengths_by_round(state: decoding_loop.LoopState, lengths: np.ndarray) -> np.ndarray:
    """Returns the texts' lengths at the start of each of K rounds, [K, B].

    A text that has ended keeps its last length. Each round ends with a token that is no draft.
    """
    ends, origin = np.asarray(state.texts.length), np.asarray(state.origin)
    starts = np.tile(ends, (int(np.max(state.counts.target_calls)), 1))
    for row, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        last = np.flatnonzero(origin[row, length : end - 1] >= CORRECTED)
        starts[: len(last) + 1, row] = [length, *(length + last + 1)]
    return starts
