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


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=pytest.mark.slow if way in ("lookup", "decoder") else ())
        for way in WAYS
    ],
)
def test_the_parts_draft_and_accept_what_the_rounds_did(way):
    decoding = prepare(way)
    decoded, replay = decoding.run(), time_breakdown.Replay.of(decoding)
    caches, proposals = replay.propose()
    verified, verdicts = replay.verify(proposals)
    assert proposals.steps.sum() == decoded.counts.draft_steps
    assert len(replay.lengths) == decoded.counts.target_calls.max()  # so few that all are run again
    drafts, path, accepted, own = (
        np.asarray(x)[::-1]
        for x in (proposals.tokens, verdicts.path, verdicts.accepted, verdicts.token)
    )
    for row, (tokens, calls) in enumerate(
        zip(decoded.tokens, decoded.counts.target_calls, strict=True)
    ):
        lengths = np.bincount(accepted[:calls, row], minlength=decoding.plan.tree.depth + 1)
        np.testing.assert_array_equal(lengths, decoded.counts.lengths[row])
        rounds = [
            [*drafts[i, row, path[i, row, : accepted[i, row]]], own[i, row]] for i in range(calls)
        ]
        np.testing.assert_array_equal(np.concatenate(rounds)[: len(tokens)], tokens)
    # What was refused stands in the caches of just the layers that each part runs.
    below, before = EXIT * (WAYS[way][0] == "kangaroo"), replay.state.texts
    assert _changed(caches[0], before.target_cache) == [True] * below + [False] * (LAYERS - below)
    assert _changed(caches[1], before.draft_cache) == [True] * len(before.draft_cache)
    assert _changed(verified, before.target_cache) == [False] * below + [way != "none"] * (
        LAYERS - below
    )


def _changed(cache, before):
    """Beyond the rounding in which two compilations may differ."""
    return [
        not np.allclose(now.keys, then.keys, atol=1e-5)
        for now, then in zip(cache, before, strict=True)
    ]


def test_the_prompts_pass_fills_the_caches():
    replay = time_breakdown.Replay.of(prepare("decoder"))
    begun, ended = replay.read_prompts().texts, replay.state.texts
    np.testing.assert_array_equal(begun.length, replay.decoding.lengths)
    for one, other in zip(
        begun.target_cache + begun.draft_cache, ended.target_cache + ended.draft_cache, strict=True
    ):
        one, other = (np.split(np.asarray(x.keys), TEXTS) for x in (one, other))
        for row, length in enumerate(replay.decoding.lengths):
            np.testing.assert_allclose(
                one[row][:, : length - 1], other[row][:, : length - 1], atol=1e-5
            )
            assert one[row][:, : length - 1].any()


@pytest.mark.parametrize("way", ["none", "tree"])
def test_a_rounds_time_is_its_loops_divided(way, monkeypatch):
    decodings, asked = [prepare(way)], []

    def interleaved(calls, *, rounds):
        asked.append(rounds)
        return {name: np.array([0.2, 0.1, 9.0]) for name in calls}

    monkeypatch.setattr(time_breakdown.timing, "interleaved", interleaved)
    (found,) = time_breakdown.milliseconds(decodings, repeats=3)
    rounds = len(time_breakdown.Replay.of(decodings[0]).lengths)
    assert asked == [3]
    assert found == {
        "prompt": 200,
        "draft": pytest.approx(200 / rounds),
        "verify": pytest.approx(200 / rounds),
    }
