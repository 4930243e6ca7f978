"""Where a decoding's time goes: the prompt's pass, drafting and verification, each timed apart.

A decoding is one compiled loop, in which no clock can stand. So it is decoded once, and then its
rounds are run again in two loops, drafting alone and verification alone. They go from the last
round to the first: what a round leaves in the caches stands behind all that an earlier one reads,
  so that each drafts and accepts what it did.
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
_ROUNDS = 32  # in one loop, at most
_HELD = 2**26  # probabilities of drafts that the rounds of one loop may hold, 256 MiB


def milliseconds(decodings: Sequence[Decoding], *, repeats: int) -> list[dict[str, float]]:
    """Of each decoding, the medians of `prompt`, the pass over the prompts, and of a round's
    `draft` and `verify`.

    Args:
      decodings: what to time, taking turns.
      repeats: how often.
    """
    replays = [Replay.of(decoding) for decoding in decodings]
    calls = {
        (i, name): call for i, replay in enumerate(replays) for name, call in replay.calls().items()
    }
    seconds = timing.interleaved(calls, rounds=repeats)
    return [
        {
            name: 1e3
            * float(np.median(seconds[i, name]))
            / (1 if name == PROMPT else len(replay.lengths))
            for name in (PROMPT, DRAFT, VERIFY)
        }
        for i, replay in enumerate(replays)
    ]


def sentence(cost: dict[str, float]) -> str:
    """What `milliseconds` gives, in words."""
    return (
        f"Timed apart, a round's drafting takes {cost[DRAFT]:.2f} ms and its verification {cost[VERIFY]:.2f}; "
        f"the prompt's pass {cost[PROMPT]:.2f} ms."
    )


@dataclasses.dataclass(frozen=True)
class Replay:
    """Rounds of a decoding that has ended, to be run again: R of K, evenly spaced, the last one
    first.

    All that a call computes is in what it returns, or the compiler would leave it out.

    Attributes:
      decoding: with each layer's weights apart, so that no call has to take them out of the stacked
        ones.
      state: how the decoding ended.
      lengths: [R, B], the texts' at each round's beginning.
    """

    decoding: Decoding
    state: decoding_loop.LoopState
    lengths: np.ndarray

    @classmethod
    def of(cls, decoding: Decoding) -> "Replay":
        params, *arrays = decoding.arrays
        models = [nnx.merge(*part).unrolled() for part in zip(decoding.graphs, params, strict=True)]
        graphs, params = zip(*map(nnx.split, models), strict=True)
        decoding = dataclasses.replace(decoding, graphs=graphs, arrays=(params, *arrays))
        state = decoding_loop.run(decoding.plan, graphs, params, *arrays, stream=None)
        begun = _begun(state, decoding.lengths)
        held = len(decoding.lengths) * (decoding.plan.tree.size + 1) * models[0].vocab_size
        count = max(1, min(_ROUNDS, len(begun), _HELD // held))
        return cls(
            decoding, state, begun[np.linspace(len(begun) - 1, 0, count).round().astype(int)]
        )

    def calls(self) -> dict:
        """The parts by name, each to be timed whole: one pass over the prompts, R draftings, R
        verifications."""
        _, proposals = self.propose()
        return {
            PROMPT: self.read_prompts,
            DRAFT: self.propose,
            VERIFY: lambda: self.verify(proposals),
        }

    def read_prompts(self) -> decoding_loop.LoopState:
        _, prompts, lengths, limits, *_ = self.decoding.arrays
        return _read_prompts(*self._how, prompts, lengths, limits)

    def propose(self) -> tuple[tuple[Cache, Cache], Proposal]:
        """The caches of target and draft afterwards, and the rounds' proposals, [R, ...] each,
        without caches."""
        texts = self.state.texts
        active = self.lengths < np.asarray(texts.length)
        return _propose(
            *self._how,
            (texts.target_cache, texts.draft_cache),
            texts.tokens,
            (self.lengths, active),
        )

    def verify(self, proposals: Proposal) -> tuple[Cache, Verdict]:
        """The target's cache afterwards, and the rounds' verdicts, [R, B, ...] each."""
        return _verify(*self._how, self.state.texts.target_cache, (self.lengths - 1, proposals))

    @property
    def _how(self):
        # Temperatures and eta are arguments, as in the decoding: of constants the compiler would
        # leave much out.
        params, *_, sampling, eta = self.decoding.arrays
        return self.decoding.plan, self.decoding.graphs, params, sampling, eta


_jit = functools.partial(jax.jit, static_argnames=("plan", "graphs"))


@_jit
def _read_prompts(plan, graphs, params, sampling, eta, *given):
    return decoding_loop.begin(plan, _draft(plan, graphs, params, eta), *given)


@_jit
def _propose(plan, graphs, params, sampling, eta, caches, tokens, rounds):
    draft = _draft(plan, graphs, params, eta)

    def step(caches, begun):
        made = draft.propose(Texts(tokens, *begun, *caches), sampling)
        return (made.target_cache, made.draft_cache), made._replace(target_cache=(), draft_cache=())

    return jax.lax.scan(step, caches, rounds)


@_jit
def _verify(plan, graphs, params, sampling, eta, cache, rounds):
    draft = _draft(plan, graphs, params, eta)

    def step(cache, begun):
        last, proposal = begun
        verdict, cache = decoding_loop.verify(
            plan, draft, last, proposal._replace(target_cache=cache), sampling
        )
        return cache, verdict

    return jax.lax.scan(step, cache, rounds)


def _draft(plan, graphs, params, eta):
    return decoding_loop.make_draft(
        plan, [nnx.merge(*part) for part in zip(graphs, params, strict=True)], eta
    )


def _begun(state, lengths):
    """The texts' lengths at the beginning of each of K rounds [K, B]; of an ended text, its own at
    the end.

    A token of the target's own ends a round.
    """
    ends, origin = np.asarray(state.texts.length), np.asarray(state.origin)
    begun = np.tile(ends, (int(np.max(state.counts.target_calls)), 1))
    for row, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        own = np.flatnonzero(origin[row, length : end - 1] >= CORRECTED)
        begun[: len(own) + 1, row] = [length, *(length + own + 1)]
    return begun
