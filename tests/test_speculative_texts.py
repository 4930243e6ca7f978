"""Dependence, ends, counts and streams of decoded texts, and the refusals of requests."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiv import speculative
from jaxdiv.speculative import decoding_loop
from jaxdiv.speculative.drafting import Lookup, Texts
from tests import speculative_cases as cases

V, TEXTS, LONGEST = 20, 16, 30
# All decodings have one shape, so that each way is compiled once.
PROMPTS = [[1, 2, 3, 4, 5, 6], [7], *cases.prompts(TEXTS - 2, V)]
LENGTHS = np.array([LONGEST, 9, 24, 24, 5, 1, 17, 24, 30, 30, 3, 2, 12, 30, 30, 30])
WAYS = {
    "chain with eta": ("kangaroo", {"gamma": 3, "eta": 0.25}),
    "tree": ("kangaroo", {"gamma": 3, "tree": speculative.parse("0,1,00,01,000")}),
    "lookup": (speculative.LOOKUP, {"gamma": 3}),
}
TREE = WAYS["tree"][1]["tree"]
SLOW = [pytest.param(way, marks=pytest.mark.slow) for way in ("tree", "lookup")]
CHAIN_FIRST = ["chain with eta", *SLOW]


def decode(kind, prompts, *, max_tokens=LONGEST, **options):
    draft = cases.draft_of(kind, V, 16)
    return speculative.decode(cases.target(V, 16), draft, prompts, max_tokens=max_tokens, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_text_depends_on_its_prompt_and_seed_alone(way):
    """Bit for bit, with neighbours of other prompts, lengths, seeds and temperatures."""
    kind, options = WAYS[way]
    same, others = np.arange(TEXTS) % 2 == 0, cases.prompts(TEXTS, V, seed=1)
    temperature = np.linspace(0, 1.5, TEXTS)
    first = decode(kind, PROMPTS, max_tokens=LENGTHS, temperature=temperature, **options)
    second = decode(
        kind,
        [PROMPTS[i] if same[i] else others[i] for i in range(TEXTS)],
        seeds=np.where(same, np.arange(TEXTS), 100),
        max_tokens=np.where(same, LENGTHS, 20),
        temperature=np.where(same, temperature, 3.0),
        **options,
    )
    assert [len(tokens) for tokens in first.tokens] == LENGTHS.tolist()
    for i in np.flatnonzero(same):
        np.testing.assert_array_equal(first.tokens[i], second.tokens[i])
        np.testing.assert_array_equal(first.origin[i], second.origin[i])
        assert first.counts.target_calls[i] == second.counts.target_calls[i]
        np.testing.assert_array_equal(first.counts.lengths[i], second.counts.lengths[i])


@pytest.mark.parametrize("way", CHAIN_FIRST)
def test_a_text_among_others_is_what_it_is_alone(way):
    kind, options = WAYS[way]
    together = decode(kind, PROMPTS, **options)
    for i in (1, 4):
        alone = decode(kind, [PROMPTS[i]], seeds=[i], **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        np.testing.assert_array_equal(alone.origin[0], together.origin[i])


def test_other_seeds_give_other_texts():
    prompts = PROMPTS[:1] * TEXTS
    together, backwards = (
        decode("kangaroo", prompts, gamma=3, seeds=range(TEXTS)[::step]) for step in (1, -1)
    )
    assert len({tuple(tokens) for tokens in together.tokens}) == TEXTS
    cases.assert_same(together, decode("kangaroo", prompts, gamma=3))
    for tokens, same in zip(together.tokens, backwards.tokens[::-1], strict=True):
        np.testing.assert_array_equal(tokens, same)


@pytest.mark.parametrize("way", CHAIN_FIRST)
def test_texts_end_with_the_stop_token(way):
    """The text is that without a stop token, cut after the first, wherever in a round it stands."""
    kind, options = WAYS[way]
    whole = decode(kind, PROMPTS, **options)
    stop = int(np.bincount(np.concatenate(whole.tokens)).argmax())
    cut = decode(kind, PROMPTS, stop=stop, **options)
    inside = 0
    for row, (long, short, origin) in enumerate(
        zip(whole.tokens, cut.tokens, whole.origin, strict=True)
    ):
        places = np.flatnonzero(long == stop)
        end = places[0] + 1 if places.size else len(long)
        np.testing.assert_array_equal(short, long[:end])
        np.testing.assert_array_equal(cut.origin[row], origin[:end])
        inside += end < len(long) and origin[end - 1] == origin[end] == decoding_loop.DRAFTED
    assert inside > 0 or kind == speculative.LOOKUP  # an accepted token stood behind one


@pytest.mark.parametrize("way", WAYS)
def test_counts_agree_with_the_texts(way):
    kind, options = WAYS[way]
    decoded = decode(kind, PROMPTS, max_tokens=LENGTHS, **options)
    counts, depth = decoded.counts, 3
    assert (counts.drafted >= counts.accepted).all()
    assert (np.diff(counts.accepted, axis=1) <= 0).all()
    assert (np.diff(counts.drafted, axis=1) <= 0).all()
    np.testing.assert_array_equal(counts.lengths.sum(axis=1), counts.target_calls)
    at_least = counts.lengths[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    np.testing.assert_array_equal(at_least, counts.accepted)
    surplus = counts.accepted.sum(axis=1) + counts.target_calls - LENGTHS
    assert ((surplus >= 0) & (surplus <= depth)).all()
    drafted = np.array([(origin == decoding_loop.DRAFTED).sum() for origin in decoded.origin])
    # The last round may be cut before the target's own token.
    np.testing.assert_array_equal(LENGTHS - drafted + (surplus > 0), counts.target_calls)
    assert (drafted <= counts.accepted.sum(axis=1)).all()
    assert decoded.tokens_per_call == LENGTHS.sum() / counts.target_calls.sum()
    if kind == speculative.LOOKUP:
        assert counts.draft_steps == 0
    if way == "tree":
        assert (counts.drafted == counts.target_calls[:, None]).all()


def test_plain_decoding_calls_the_target_once_a_token():
    decoded = decode(None, [[3], [4, 5]], max_tokens=[7, 12])
    assert decoded.counts.target_calls.tolist() == [7, 12]
    assert decoded.tokens_per_call == 1
    assert all((origin == decoding_loop.BONUS).all() for origin in decoded.origin)


def test_a_bonus_follows_accepted_drafts_alone():
    """A round is some drafts and then a token of the target, a correction after a rejection."""
    decoded = decode("kangaroo", PROMPTS, gamma=3)
    letters = np.array(["", "d", "c", "b"])
    rounds = [re.findall("d*[cb]", "".join(letters[origin])) for origin in decoded.origin]
    assert set(itertools.chain(*rounds)) == {"c", "dc", "ddc", "dddb"}


def test_lookup_copies_what_followed_the_longest_repetition():
    """It copies from the latest one, again and again if the text ends before gamma tokens."""

    def drafts(text, gamma=3, longest=3):
        tokens = np.zeros((1, 12), np.int32)
        tokens[0, : len(text)] = text
        length = np.array([len(text)])
        texts = Texts(jnp.asarray(tokens), jnp.asarray(length), jnp.asarray(length > 0), (), ())
        proposal = Lookup(cases.target(V, 16), gamma, longest).propose(texts, None)
        assert proposal.tokens[0, 0] == text[-1]
        return proposal.tokens[0][proposal.valid[0]].tolist()[1:]

    assert drafts([1, 2, 3, 4, 1, 2]) == [3, 4, 1]
    twice = [5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2]  # three tokens repeat early, two of them later
    assert drafts(twice) == [7, 6, 1]
    assert drafts(twice, longest=2) == [8, 5, 1]
    assert drafts([1, 2, 1, 3, 1]) == [3, 1, 3]  # the latest
    assert drafts([4, 4], gamma=5) == [4] * 5
    assert drafts([9, 1, 2, 3, 1, 2, 3], gamma=5) == [1, 2, 3, 1, 2]
    assert drafts([1, 2, 3]) == []
    assert drafts([0]) == []
    assert drafts([1, 2, 0]) == []  # what lies behind the text is no text
    assert drafts([4, 4], gamma=0) == []


def test_lookup_drafts_whole_rounds_of_a_periodic_text():
    prompts = [[1, 2, 3] * 3, [7] * 5, *PROMPTS[2:]]
    quick, plain = (decode(kind, prompts, gamma=3) for kind in (speculative.LOOKUP, None))
    cases.assert_same(quick, plain)
    first = decode(speculative.LOOKUP, prompts, gamma=3, max_tokens=1).counts
    assert first.drafted[:2].tolist() == [[1, 1, 1]] * 2


def test_rounds_are_streamed_in_order_and_traced_once(monkeypatch):
    rounds, traces = [], []

    def stream(tokens, before, after, *_):
        rounds.append([np.array(x) for x in (tokens, before, after)])

    begin, prompts = decoding_loop.begin, PROMPTS[:6]
    monkeypatch.setattr(decoding_loop, "begin", lambda *a: traces.append(None) or begin(*a))
    for seed in (0, 6):
        rounds.clear()
        options = {"seeds": range(seed, seed + 6), "temperature": 1 + seed, "eta": seed / 20}
        options |= {"max_tokens": LENGTHS[:6], "gamma": 3, "stream": stream}
        decoded = decode("kangaroo", prompts, **options)
        jax.effects_barrier()
        assert len(rounds) == decoded.counts.target_calls.max()
        for row, text in enumerate(decoded.tokens):
            parts = [tokens[row, before[row] : after[row]] for tokens, before, after in rounds]
            np.testing.assert_array_equal(np.concatenate(parts), text)
            assert sum(part.size > 0 for part in parts) == decoded.counts.target_calls[row]
            np.testing.assert_array_equal(rounds[-1][0][row, : len(prompts[row])], prompts[row])
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "each prompt must have at least one token"),
        ({"prompts": [[1], []]}, "each prompt must have at least one token"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1, got 0"),
        ({"max_tokens": [4, 0]}, "`max_tokens` must be at least 1, got 0"),
        ({"rule": "best"}, "`rule` must be one of sampling, .*typical, got 'best'"),
        ({"gamma": 0}, "`gamma` must be at least 1, got 0; without drafts, decode plainly"),
        ({"eta": 1.5}, r"`eta` must be in \[0, 1\], got 1.5; 0 never stops drafting"),
        ({"draft": "ngram"}, "`draft` must be a student, 'lookup' or None, got 'ngram'"),
        ({"draft": "lookup", "tree": TREE}, "`lookup` drafts a chain; a tree needs a student"),
        ({"tree": TREE, "gamma": 2}, "3 tokens deep, but `gamma` allows 2; gamma=3 fits"),
        ({"tree": TREE, "eta": 0.1}, "`eta` ends a chain; with a tree it must be 0"),
        ({"temperature": [1.0, -1.0]}, "`temperature` must be finite and at least 0, got -1.0"),
        ({"top_k": [3, 0]}, "`top_k` must be at least 1, got 0; None keeps all"),
        ({"max_tokens": [4] * 3}, "`max_tokens` has 3 values for 2 texts; give one for all, or"),
        ({"max_tokens": []}, "`max_tokens` has 0 values for 2 texts"),
        ({"temperature": [1.0, 1.0, 0.0]}, "`temperature` has 3 values for 2 texts"),
        ({"top_k": [3, 2, 1, 1]}, "`top_k` has 4 values for 2 texts"),
        ({"top_p": [0.5] * 3}, "`top_p` has 3 values for 2 texts"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], got 0.0; None keeps all"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    draft, prompts = cases.student("kangaroo", V, 16), [[1], [2]]
    arguments = {"draft": draft, "prompts": prompts, "max_tokens": 4} | options
    with pytest.raises(ValueError, match=message):
        speculative.decode(cases.target(V, 16), **arguments)
    with pytest.raises(TypeError, match="decode takes no argument 'temperatur'"):
        speculative.decode(cases.target(V, 16), draft, prompts, max_tokens=4, temperatur=1.0)
