"""The timed parts of a decoding do what its rounds did, and leave nothing out."""

import numpy as np
import pytest

from experiments.common import time_breakdown
from jaxdiv import speculative
from tests import speculative_cases as cases

V, TEXTS = 20, 6
WAYS = {
    "none": (None, {}),
    "lookup": (speculative.LOOKUP, {"gamma": 3}),
    "chain with eta": ("kangaroo", {"gamma": 3, "eta": 0.25, "rule": "coupled"}),
    "decoder": ("decoder", {"gamma": 2, "rule": "sampling"}),
    "tree": ("kangaroo", {"gamma": 3, "tree": speculative.parse("0,1,00,01,000")}),
}
LAYERS, EXIT = 2, 1  # of the target, and where the Kangaroo student stands


def prepare(way):
    kind, options = WAYS[way]
    draft = kind if kind in (None, speculative.LOOKUP) else cases.student(kind, V, 16)
    how = {"max_tokens": [12, 3, 9, 12, 1, 12], "temperature": [0.0, 1.0, 0.5, 1.0, 1.0, 2.0]}
    return speculative.prepare(
        cases.target(V, 16), draft, cases.prompts(TEXTS, V), **how, **options
    )


SLOW = ("lookup", "decoder")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow if way in SLOW else ()) for way in WAYS]
)
def test_the_parts_draft_and_accept_as_the_rounds_did(way):
    decoding = prepare(way)
    decoded, replay = decoding.run(), time_breakdown.Replay.from_decoding(decoding)
    caches, proposals = replay.propose()
    verified, verdicts = replay.verify(proposals)
    calls_by_text = decoded.counts.target_calls
    assert proposals.steps.sum() == decoded.counts.draft_steps
    assert len(replay.lengths) == calls_by_text.max()  # so few that all are run again
    drafts, path, accepted, tokens_after = (
        np.asarray(x)[::-1]
        for x in (proposals.tokens, verdicts.path, verdicts.accepted, verdicts.token)
    )
    for row, (tokens, calls) in enumerate(zip(decoded.tokens, calls_by_text, strict=True)):
        lengths = np.bincount(accepted[:calls, row], minlength=decoding.plan.tree.depth + 1)
        np.testing.assert_array_equal(lengths, decoded.counts.lengths[row])
        rounds = []
        for i in range(calls):
            accepted_path = path[i, row, : accepted[i, row]]
            rounds += [*drafts[i, row, accepted_path], tokens_after[i, row]]
        np.testing.assert_array_equal(rounds[: len(tokens)], tokens)
    # Refused drafts stand in the caches of just the layers that each part runs.
    below, before = EXIT * (WAYS[way][0] == "kangaroo"), replay.state.texts
    above = LAYERS - below
    assert changed(caches[0], before.target_cache) == [True] * below + [False] * above
    assert changed(caches[1], before.draft_cache) == [True] * len(before.draft_cache)
    assert changed(verified, before.target_cache) == [False] * below + [way != "none"] * above


def changed(cache, before):
    """Says of each layer whether it changed beyond the rounding of two compilations."""
    layers = zip(cache, before, strict=True)
    return [not np.allclose(new.keys, old.keys, atol=1e-5) for new, old in layers]


def test_the_prompts_pass_fills_the_caches():
    replay = time_breakdown.Replay.from_decoding(prepare("decoder"))
    start, end = replay.read_prompts().texts, replay.state.texts
    np.testing.assert_array_equal(start.length, replay.decoding.lengths)
    caches = zip(
        start.target_cache + start.draft_cache, end.target_cache + end.draft_cache, strict=True
    )
    for pair in caches:
        one, other = (np.split(np.asarray(x.keys), TEXTS) for x in pair)
        for row, length in enumerate(replay.decoding.lengths):
            new, old = one[row][:, : length - 1], other[row][:, : length - 1]
            np.testing.assert_allclose(new, old, atol=1e-5)
            assert new.any()


@pytest.mark.parametrize("way", ["none", "tree"])
def test_a_rounds_time_is_its_loops_divided(way, monkeypatch):
    decodings, repeats = [prepare(way)], []

    def interleaved(calls, *, rounds):
        repeats.append(rounds)
        return {name: np.array([0.2, 0.1, 9.0]) for name in calls}

    monkeypatch.setattr(time_breakdown.timing, "interleaved", interleaved)
    (cost,) = time_breakdown.milliseconds(decodings, repeats=3)
    rounds = len(time_breakdown.Replay.from_decoding(decodings[0]).lengths)
    assert repeats == [3]
    part = pytest.approx(200 / rounds)
    assert cost == {"prompt": 200, "draft": part, "verify": part}
