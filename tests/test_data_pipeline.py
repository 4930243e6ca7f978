"""Packing, order, sharding, resuming and evaluation windows."""

import collections
import itertools
import shutil

import numpy as np
import pytest

from configs import smoke
from jaxdiv import data
from jaxdiv.data import pipeline
from jaxdiv.runs.specs import RunSpec
from jaxdiv.runs.workdir import Workdir
from jaxdiv.training import run_data
from tests import runs
from tests.fixtures_data import sentences

END = 7


def tokens_of(*sizes, start=100):
    """Documents of `sizes` tokens, the end of text included; every other id is different."""
    ids = np.arange(start, start + sum(sizes), dtype=np.int32)
    offsets = np.cumsum([0, *sizes]).astype(np.int64)
    ids[offsets[1:] - 1] = END
    return data.Tokens(ids=ids, offsets=offsets)


TOKENS = tokens_of(31, 2, 50, 1, 17)  # 101 tokens: 20 windows of 5


def batches(**changes):
    return data.batches(TOKENS, **({"sequence_length": 5, "batch_size": 4, "seed": 0} | changes))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def stack(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(("batch_size", "count"), [(4, 15), (3, 20)])
def test_every_token_is_a_label_once_an_epoch(batch_size, count):
    labels = stack(take(batches(batch_size=batch_size), count), "labels")
    # Batches that do not divide an epoch lose nothing.
    for epoch in labels.reshape(3, -1):
        assert collections.Counter(epoch.tolist()) == collections.Counter(TOKENS.ids[1:].tolist())


def test_labels_follow_inputs_within_documents():
    five = take(batches(), 5)
    inputs, labels, weights = (stack(five, name) for name in ("inputs", "labels", "weights"))
    assert inputs.shape == labels.shape == weights.shape == (20, 5)
    assert (inputs.dtype, labels.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    np.testing.assert_array_equal(weights, np.where(inputs == END, 0.0, 1.0))
    document = np.searchsorted(TOKENS.offsets, np.arange(101), side="right")
    place = {(int(a), int(b)): i for i, (a, b) in enumerate(itertools.pairwise(TOKENS.ids))}
    for pair, weight in zip(zip(inputs.flat, labels.flat, strict=True), weights.flat, strict=True):
        i = place[int(pair[0]), int(pair[1])]
        assert weight == (document[i] == document[i + 1])


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = {}
    for seed in range(4):
        inputs = stack(take(batches(seed=seed), 15), "inputs").reshape(3, -1)
        orders |= {(seed, epoch): inputs[epoch].tobytes() for epoch in range(3)}
    assert len(set(orders.values())) == 12
    assert_same(take(batches(seed=3), 12), take(batches(seed=3), 12))
    first, second = take(batches(batch_size=1), 2)
    assert first["inputs"].shape == (1, 5)
    assert not np.array_equal(first["inputs"], second["inputs"])


def test_resuming_gives_the_same_batches():
    whole = take(batches(batch_size=3), 25)
    iterator, again = batches(batch_size=3), batches(batch_size=3)
    take(iterator, 11)
    again.set_state(iterator.get_state())
    assert_same(take(again, 14), whole[11:])
    assert_same(take(iterator, 14), whole[11:])


def test_processes_share_the_global_batch():
    shards = [take(batches(rows=rows), 12) for rows in (slice(0, 1), slice(1, 4), slice(4, 4))]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, take(batches(), 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 21}, r"a batch of 21 x 5 needs 106 tokens, got 101; use a smaller"),
        ({"sequence_length": 0}, r"`sequence_length` must be at least 1, got 0"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1, got 0"),
    ],
)
def test_batches_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        batches(**changes)


def test_evaluation_windows_have_each_documents_first_tokens():
    windows = data.evaluation_windows(TOKENS, sequence_length=6, end_of_text=END, max_tokens=20)
    assert windows.inputs.shape == windows.labels.shape == windows.weights.shape
    for k in range(5):
        ids = TOKENS.ids[TOKENS.offsets[k] : TOKENS.offsets[k + 1]][:20]
        weighted = (windows.document == k)[:, None] & (windows.weights == 1)
        np.testing.assert_array_equal(windows.inputs[weighted], ids[:-1])
        np.testing.assert_array_equal(windows.labels[weighted], ids[1:])
    assert set(np.unique(windows.weights)) == {0.0, 1.0}
    assert (windows.labels[windows.weights == 0] == END).all()
    assert (windows.inputs[windows.weights == 1] != END).all()
    np.testing.assert_array_equal(windows.document, [0] * 4 + [1] + [2] * 4 + [4] * 3)
    first = data.evaluation_windows(TOKENS, sequence_length=100, end_of_text=END, max_documents=2)
    np.testing.assert_array_equal(first.document, [0, 1])
    assert first.weights.sum(axis=1).tolist() == [30, 1]


def test_prompts():
    prompts, document = data.prompts(TOKENS, length=17, max_documents=5)
    np.testing.assert_array_equal(document, [0, 2])
    np.testing.assert_array_equal(prompts, [TOKENS.ids[:17], TOKENS.ids[33:50]])
    assert (prompts.dtype, document.dtype) == (np.int32, np.int32)
    assert data.prompts(TOKENS, length=17, max_documents=1)[1].tolist() == [0]
    with pytest.raises(ValueError, match="no document has more than 50 tokens; the longest has 50"):
        data.prompts(TOKENS, length=50)


def test_tokens_are_documents_that_end_and_survive_a_file(tmp_path):
    texts = tuple(sentences(150))
    splits = {"train": texts, "validation": texts[:2], "test": texts[5:6]}
    bpe = data.Tokenizer.train(texts, 300)
    tokens = data.tokenize(data.Documents(**splits, counts={}, left_out="", fingerprint=""), bpe)
    assert {split: part.documents for split, part in tokens.items()} == {
        split: len(part) for split, part in splits.items()
    }
    path = tmp_path / "train.npz"
    tokens["train"].save(path)
    train = data.Tokens.load(path)
    assert train.end_of_text == bpe.end_of_text
    for k, text in enumerate(texts):
        ids = train.ids[train.offsets[k] : train.offsets[k + 1]]
        assert ids.tolist() == [*bpe.encode(text), bpe.end_of_text]
    for damage in (
        lambda: path.write_bytes(path.read_bytes()[:100]),
        lambda: np.savez(path, ids=train.ids, offsets=train.offsets[:-1]),
        lambda: np.savez(path, ids=train.ids, offsets=train.offsets[:0]),
    ):
        damage()
        with pytest.raises(ValueError, match=r"can't read tokens from .*train\.npz"):
            data.Tokens.load(path)


def prepared(config, folder):
    run = Workdir(folder)
    run.initialize_or_resume(config.to_dict())
    return run_data.prepare(RunSpec.from_config(config.to_dict()), run)


def test_a_lent_teachers_tokens_serve_for_the_same_documents(tmp_path, monkeypatch):
    texts = runs.write_texts(tmp_path / "texts")
    config = smoke.get_config()
    config.data.files = f"{texts}/*.txt"
    first = prepared(config, tmp_path / "first")
    config.teacher.checkpoint = str(tmp_path / "first")
    monkeypatch.setattr(pipeline, "tokenize", lambda *_: pytest.fail("tokenized anew"))
    second = prepared(config, tmp_path / "second")
    assert second.fingerprints() == first.fingerprints()
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "second" / "tokens")
    config.teacher.checkpoint = str(tmp_path / "second")
    assert prepared(config, tmp_path / "again").fingerprints() == first.fingerprints()
    (texts / "more.txt").write_text("draft target token accept " * 40)
    third = prepared(config, tmp_path / "third")
    assert third.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert third.fingerprints() != first.fingerprints()
