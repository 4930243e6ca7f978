"""What a text depends on, where it ends, what is counted and streamed, and what is refused."""

import itertools
import re

import jax
import numpy as np
import pytest

from jaxdiv import speculative
from jaxdiv.speculative import loop
from jaxdiv.speculative.drafting import Lookup
from tests import speculative_cases as cases

V = 20
TREE = speculative.parse("0,1,00,01,000")
WAYS = {
    "chain with eta": ("kangaroo", {"gamma": 3, "eta": 0.25}),
    "tree": ("decoder", {"gamma": 3, "tree": TREE}),
    "lookup": (speculative.LOOKUP, {"gamma": 3}),
}


def decode(kind, prompts, **options):
    draft = kind if kind in (None, speculative.LOOKUP) else cases.student(kind, V, 16)
    return speculative.decode(cases.target(V, 16), draft, prompts, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_text_depends_on_its_prompt_and_seed_alone(way):
    """Bit for bit with other neighbours of the same shapes; token for token where the shapes differ too."""
    kind, options = WAYS[way]
    prompts, others = cases.prompts(8, V), cases.prompts(8, V, seed=1, lengths=(6, 7))
    prompts[2] = prompts[2][:1]
    own = {"max_tokens": np.array([9, 24, 24, 5, 1, 17, 24, 24]), "temperature": np.linspace(0, 1.4, 8)}
    first = decode(kind, prompts, seeds=range(8), **own, **options)
    mixed = [i % 2 == 0 for i in range(8)]
    neighbours = decode(
        kind,
        [prompt if keep else other for keep, prompt, other in zip(mixed, prompts, others, strict=True)],
        seeds=[i if keep else 100 + i for i, keep in enumerate(mixed)],
        max_tokens=np.where(mixed, own["max_tokens"], 24),
        temperature=np.where(mixed, own["temperature"], 3.0),
        **options,
    )
    for i in np.flatnonzero(mixed):
        np.testing.assert_array_equal(first.tokens[i], neighbours.tokens[i])
        np.testing.assert_array_equal(first.origin[i], neighbours.origin[i])
        assert first.counts.target_calls[i] == neighbours.counts.target_calls[i]
        assert first.counts.lengths[i].tolist() == neighbours.counts.lengths[i].tolist()
    alone = decode(kind, [prompts[5]], seeds=[5], max_tokens=17, temperature=own["temperature"][5], **options)
    np.testing.assert_array_equal(alone.tokens[0], first.tokens[5])
    np.testing.assert_array_equal(alone.origin[0], first.origin[5])
    assert [len(tokens) for tokens in first.tokens] == own["max_tokens"].tolist()


def test_other_seeds_give_other_texts():
    together = decode("kangaroo", [[3, 1]] * 16, max_tokens=12)
    assert len({tuple(tokens) for tokens in together.tokens}) == 16
    cases.assert_same(together, decode("kangaroo", [[3, 1]] * 16, max_tokens=12, seeds=range(16)))
    backwards = decode("kangaroo", [[3, 1]] * 16, max_tokens=12, seeds=range(16)[::-1])
    cases.assert_same(together, speculative.Decoded(backwards.tokens[::-1], [], None))


@pytest.mark.parametrize("way", WAYS)
def test_texts_end_with_the_stop_token(way):
    """The text is that without a stop token, cut after the first, wherever in a round it stands."""
    kind, options = WAYS[way]
    prompts = cases.prompts(40, V)
    whole = decode(kind, prompts, max_tokens=30, **options)
    stop = int(np.bincount(np.concatenate(whole.tokens)).argmax())
    cut = decode(kind, prompts, max_tokens=30, stop=stop, **options)
    inside = 0
    for row, (long, short, origin) in enumerate(zip(whole.tokens, cut.tokens, whole.origin, strict=True)):
        places = np.flatnonzero(long == stop)
        end = places[0] + 1 if places.size else 30
        np.testing.assert_array_equal(short, long[:end])
        np.testing.assert_array_equal(cut.origin[row], origin[:end])
        inside += places.size and end < 30 and origin[end - 1] == origin[end] == loop.DRAFTED
    assert inside > 0 or kind == speculative.LOOKUP  # an accepted token stood behind one


@pytest.mark.parametrize("way", WAYS)
def test_counts_agree_with_the_texts(way):
    kind, options = WAYS[way]
    decoded = decode(kind, cases.prompts(12, V), max_tokens=np.arange(1, 13) * 3, **options)
    counts, depth = decoded.counts, 3
    assert (counts.drafted >= counts.accepted).all()
    assert (np.diff(counts.accepted, axis=1) <= 0).all()
    assert (np.diff(counts.drafted, axis=1) <= 0).all()
    np.testing.assert_array_equal(counts.lengths.sum(axis=1), counts.target_calls)
    np.testing.assert_array_equal(counts.lengths @ np.arange(depth + 1), counts.accepted.sum(axis=1))
    np.testing.assert_array_equal(counts.lengths[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], counts.accepted)
    tokens = np.array([len(text) for text in decoded.tokens])
    lost = counts.accepted.sum(axis=1) + counts.target_calls - tokens
    assert ((lost >= 0) & (lost <= depth)).all()
    drafted = np.array([(origin == loop.DRAFTED).sum() for origin in decoded.origin])
    own = np.array([(origin != loop.DRAFTED).sum() for origin in decoded.origin])
    # The last round may be cut before the target's own token.
    np.testing.assert_array_equal(own + (lost > 0), counts.target_calls)
    assert (drafted <= counts.accepted.sum(axis=1)).all()
    assert decoded.tokens_per_call == tokens.sum() / counts.target_calls.sum()
    if kind == speculative.LOOKUP:
        assert counts.draft_steps == 0
    if way == "tree":
        assert (counts.drafted == counts.target_calls[:, None]).all()


def test_plain_decoding_calls_the_target_once_a_token():
    decoded = decode(None, [[3], [4, 5]], max_tokens=[7, 12])
    assert decoded.counts.target_calls.tolist() == [7, 12]
    assert decoded.tokens_per_call == 1
    assert all((origin == loop.BONUS).all() for origin in decoded.origin)


def test_a_bonus_follows_accepted_drafts_alone():
    """A round is some drafts and then one token of the target: a correction where a draft was refused."""
    decoded = decode("kangaroo", cases.prompts(12, V), max_tokens=40, gamma=2)
    letters = np.array(["", "d", "c", "b"])
    rounds = [re.findall("d*[cb]", "".join(letters[origin])) for origin in decoded.origin]
    assert set(itertools.chain(*rounds)) == {"c", "dc", "ddb"}


def test_lookup_copies_what_followed_the_longest_repetition():
    """The latest of them; no more than the text holds."""

    def find(text, gamma=3, longest=3):
        tokens = np.zeros(12, np.int32)
        tokens[: len(text)] = text
        count, start = Lookup(None, gamma, longest)._find(jax.numpy.asarray(tokens), jax.numpy.array(len(text)))
        return text[int(start) : int(start) + int(count)]

    assert find([1, 2, 3, 4, 1, 2]) == [3, 4, 1]
    assert find([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2]) == [7, 6, 1]  # three repeat there, two at the later place
    assert find([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2], longest=2) == [8, 5, 1]
    assert find([1, 2, 1, 3, 1]) == [3, 1]  # the latest, and no more than there is
    assert find([4, 4]) == [4]
    assert find([1, 2, 3]) == []
    assert find([0]) == []
    assert find([1, 2, 0]) == []  # what lies behind the text is no text


def test_each_round_is_streamed_in_order_and_nothing_is_traced_twice(monkeypatch):
    rounds, traces = [], []

    def stream(tokens, before, after):
        rounds.append([np.array(x) for x in (tokens, before, after)])

    monkeypatch.setattr(loop, "_begin", lambda *a, right=loop._begin: traces.append(None) or right(*a))
    prompts = cases.prompts(6, V)
    limits = np.array([1, 5, 9, 14, 14, 20])
    for seed in (0, 6):
        rounds.clear()
        options = {"seeds": range(seed, seed + 6), "temperature": 1 + seed, "eta": seed / 20}
        decoded = decode("kangaroo", prompts, max_tokens=limits, gamma=3, stream=stream, **options)
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
        ({"tree": TREE, "gamma": 2}, "the tree is 3 tokens deep, but `gamma` allows 2; gamma=3 fits"),
        ({"tree": TREE, "eta": 0.1}, "`eta` ends a chain; with a tree it must be 0"),
        ({"temperature": [1.0, -1.0]}, "`temperature` must be finite and at least 0, got -1.0"),
        ({"top_k": [3, 0]}, "`top_k` must be at least 1, got 0; None keeps all"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], got 0.0; None keeps all"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    options = {"draft": cases.student("kangaroo", V, 16), "prompts": [[1], [2]], "max_tokens": 4} | options
    with pytest.raises(ValueError, match=message):
        speculative.decode(cases.target(V, 16), options.pop("draft"), options.pop("prompts"), **options)
