"""Tokenizers of Hugging Face folders, byte-level and SentencePiece's kind: lossless, as large as
the model, with an end of text."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jaxdiv.data import Tokenizer, tokenizer
from tests.fixtures_data import sentences

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
END = "</s>"


def sentence_piece():
    """Llama 2's kind: spaces are ▁, one stands before the text, and what has no token falls back on
    bytes."""
    tokens = ["<unk>", "<s>", END, *(f"<0x{i:02X}>" for i in range(256))]
    tokens += ["▁", "a", "b", "é", "▁a", "ab"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    options = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    bpe = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("a", "b")], **options))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bpe.add_special_tokens(["<unk>", "<s>", END])
    bpe.enable_truncation(4)
    bpe.enable_padding(length=9)
    return bpe


def write(folder, name, **settings):
    (folder / name).write_text(json.dumps(settings))


@pytest.fixture
def folder(tmp_path):
    sentence_piece().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture(scope="module")
def piece(tmp_path_factory):
    folder = tmp_path_factory.mktemp("piece")
    sentence_piece().save(str(folder / "tokenizer.json"))
    write(folder, "config.json", eos_token_id=2)
    bpe = tokenizer.read_folder(folder, vocab_size=270)
    bpe.save(folder / "run" / "tokenizer.json")
    return Tokenizer.load(folder / "run" / "tokenizer.json")


@given(TEXT)
def test_every_text_decodes_to_itself(piece, text):
    ids = piece.encode(text)
    assert piece.decode(ids) == text
    # SentencePiece puts a space before the text.
    assert piece.byte_lengths[ids].sum() == len(text.encode()) + bool(text)
    assert piece.end_of_text not in ids


def test_rows_that_only_the_model_has_are_never_used(piece):
    assert piece.vocab_size == 270 == len(piece.byte_lengths)
    assert piece.end_of_text == 2
    assert max(piece.encode("ab <|unused 266|> é€")) < 265
    assert piece.decode([4, 2, 269]) == "\x01"
    assert piece.end_of_text not in piece.encode(f"a {END} b")
    assert piece.decode(piece.encode(f"a {END} b")) == f"a {END} b"


TOKENIZER, GENERATION, MODEL = "tokenizer_config.json", "generation_config.json", "config.json"


@pytest.mark.parametrize(
    ("files", "end_of_text"),
    [
        ({TOKENIZER: {"eos_token": "<s>"}, MODEL: {"eos_token_id": 2}}, 1),
        ({TOKENIZER: {"eos_token": {"content": END}}}, 2),
        ({GENERATION: {"eos_token_id": [2, 1]}, MODEL: {"eos_token_id": 1}}, 2),
        ({TOKENIZER: {"eos_token": None}, MODEL: {"eos_token_id": 1}}, 1),
    ],
)
def test_the_end_of_text_is_that_of_the_first_file(folder, files, end_of_text):
    for name, settings in files.items():
        write(folder, name, **settings)
    assert tokenizer.read_folder(folder, vocab_size=265).end_of_text == end_of_text


def test_unusable_tokenizers_are_named(folder):
    def refused(message, vocab_size=265):
        with pytest.raises(ValueError, match=message):
            tokenizer.read_folder(folder, vocab_size=vocab_size)

    refused("does not say which token ends a document: set `eos_token`")
    write(folder, MODEL, eos_token_id=2)
    refused("tokenizer.json has 265 tokens, more than the `vocab_size` 264", vocab_size=264)
    write(folder, TOKENIZER, eos_token="<end>")
    refused("tokenizer.json: there is no token <end>")
    write(folder, TOKENIZER, eos_token=END)
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["model"]["byte_fallback"] = False
    write(folder, "tokenizer.json", **settings)
    refused("tokenizer.json: it must be a byte-level BPE, or one that falls back")
    settings["model"]["vocab"]["ab"] = 300
    write(folder, "tokenizer.json", **settings)
    refused("has 265 tokens, but none with the id 264", vocab_size=400)
    (folder / "tokenizer.json").unlink()
    refused("tokenizer.json is not there")


def test_a_byte_level_one_with_its_own_pattern_of_words(tmp_path):
    """Llama 3's kind: a pattern cuts the words, bytes follow."""
    bpe = tokenizers.Tokenizer(models.BPE())
    pattern = pre_tokenizers.Split(tokenizers.Regex(r"\s+|\w+|[^\s\w]+"), "isolated")
    on_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pattern, on_bytes])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=["<|end|>"]
    )
    bpe.train_from_iterator(sentences(20), trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, TOKENIZER, eos_token="<|end|>")
    bpe = tokenizer.read_folder(tmp_path, vocab_size=290)
    text = "the quick é€ <|end|>\n"
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.byte_lengths[ids].sum() == len(text.encode())
    assert bpe.end_of_text not in ids
