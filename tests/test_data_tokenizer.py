"""Byte-level BPE: lossless, deterministic, safe on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiv.data import Tokenizer, tokenizer
from tests.fixtures_data import sentences

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train(sentences(50), 300)


@given(TEXT)
def test_every_text_decodes_to_itself(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.byte_lengths[ids].sum() == len(text.encode())
    assert bpe.end_of_text not in ids


def test_the_end_of_text_in_a_document_is_text(bpe):
    text = "a <|endoftext|> b"
    assert bpe.end_of_text not in bpe.encode(text)
    assert bpe.end_of_text not in bpe.encode_batch([text])[0]
    assert bpe.decode(bpe.encode(text)) == text


def test_vocabulary(bpe):
    assert bpe.vocab_size == 300 == len(bpe.byte_lengths)
    assert 0 <= bpe.end_of_text < 300
    assert bpe.byte_lengths[bpe.end_of_text] == 0
    assert (bpe.byte_lengths == 0).sum() == 1
    assert bpe.decode([bpe.end_of_text, *bpe.encode("fox")]) == "fox"


def test_merges_shorten_the_text(bpe):
    text = sentences(9)[8]
    assert len(bpe.encode(text)) < len(text) / 2
    assert bpe.encode_batch([text, ""]) == [bpe.encode(text), []]


def test_training_is_deterministic(bpe):
    assert Tokenizer.train(iter(sentences(50)), 300).fingerprint == bpe.fingerprint
    assert Tokenizer.train(sentences(50), 301).fingerprint != bpe.fingerprint


def test_save_and_load(bpe, tmp_path):
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    again = Tokenizer.load(path)
    text = "def f():\r\n\treturn '<|endoftext|>é'"
    assert again.fingerprint == bpe.fingerprint
    assert again.encode(text) == bpe.encode(text)
    assert again.decode(again.encode(text)) == text
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]


WORDS = b'{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}'


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"version": "1.0"', WORDS])
def test_a_bad_or_missing_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json") as error:
        Tokenizer.load(path)
    assert "\n" not in str(error.value)


def test_sizes_of_vocabularies():
    assert Tokenizer.train(["ab"], 300).vocab_size == 258  # a small corpus has no more pairs
    with pytest.raises(ValueError, match=r"`vocab_size` must be at least 257 .*, got 256"):
        Tokenizer.train(["a"], 256)


def test_long_texts_teach_in_pieces_what_they_teach_whole(monkeypatch):
    texts = [" ".join(f"word{i % 97} = {i % 13}\n" for i in range(9000))]
    cut = Tokenizer.train(texts, 400)
    monkeypatch.setattr(tokenizer, "_PIECE", 2**30)
    assert cut.fingerprint == Tokenizer.train(texts, 400).fingerprint


def test_an_endless_word_is_learned_from_in_seconds():
    word = "a" * 2**20
    bpe = Tokenizer.train([word], 300)
    assert bpe.decode(bpe.encode(word)) == word
