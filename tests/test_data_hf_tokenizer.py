"""Tokenizers of Llama folders, byte-level and SentencePiece's kind: lossless, as large as the
model, ended."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from jaxdiv.data import Tokenizer, hf_tokenizer
from tests.fixtures_data import sentences

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
END = "</s>"


def sentence_piece():
    """Llama 2's kind: spaces are ▁, one stands before the text, and what has no token falls back on
    bytes."""
    tokens = [
        "<unk>",
        "<s>",
        END,
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "a",
        "b",
        "é",
        "▁a",
        "ab",
    ]
    merges = [("▁", "a"), ("a", "b")]
    bpe = tokenizers.Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(tokens)},
            merges,
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    bpe.decoder = decoders.Sequence(steps)
    bpe.add_special_tokens(["<unk>", "<s>", END])
    bpe.enable_truncation(4)
    bpe.enable_padding(length=9)
    return bpe


@pytest.fixture
def folder(tmp_path):
    sentence_piece().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def say(folder, name, **settings):
    (folder / name).write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def piece(tmp_path_factory):
    folder = tmp_path_factory.mktemp("piece")
    sentence_piece().save(str(folder / "tokenizer.json"))
    say(folder, "config.json", eos_token_id=2)
    bpe = hf_tokenizer.read(folder, vocab_size=270)
    bpe.save(folder / "run" / "tokenizer.json")
    return Tokenizer.load(folder / "run" / "tokenizer.json")


@given(TEXT)
def test_every_text_decodes_to_itself(piece, text):
    ids = piece.encode(text)
    assert piece.decode(ids) == text
    # SentencePiece puts a space before the text.
    assert piece.byte_lengths[ids].sum() == len(text.encode()) + bool(text)
    assert piece.end_of_text not in ids


def test_it_is_as_large_as_the_model_and_further_rows_are_never_used(piece):
    assert piece.vocab_size == 270 == len(piece.byte_lengths)
    assert piece.end_of_text == 2
    assert max(piece.encode("ab <|unused 266|> é€")) < 265
    assert piece.decode([4, 2, 269]) == "\x01"


def test_the_end_of_text_is_in_the_text_a_text(piece):
    assert piece.end_of_text not in piece.encode(f"a {END} b")
    assert piece.decode(piece.encode(f"a {END} b")) == f"a {END} b"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"tokenizer_config.json": {"eos_token": "<s>"}, "config.json": {"eos_token_id": 2}}, 1),
        ({"tokenizer_config.json": {"eos_token": {"content": END}}}, 2),
        (
            {
                "generation_config.json": {"eos_token_id": [2, 1]},
                "config.json": {"eos_token_id": 1},
            },
            2,
        ),
        ({"tokenizer_config.json": {"eos_token": None}, "config.json": {"eos_token_id": 1}}, 1),
    ],
)
def test_the_end_of_text_is_found(folder, files, found):
    for name, settings in files.items():
        say(folder, name, **settings)
    assert hf_tokenizer.read(folder, vocab_size=265).end_of_text == found


def test_what_cannot_serve_is_named(folder):
    with pytest.raises(
        ValueError, match="does not say which token ends a document: set `eos_token`"
    ):
        hf_tokenizer.read(folder, vocab_size=265)
    say(folder, "config.json", eos_token_id=2)
    with pytest.raises(
        ValueError, match=r"tokenizer.json has 265 tokens, more than the `vocab_size` 264"
    ):
        hf_tokenizer.read(folder, vocab_size=264)
    say(folder, "tokenizer_config.json", eos_token="<end>")
    with pytest.raises(ValueError, match=r"tokenizer.json: there is no token <end>"):
        hf_tokenizer.read(folder, vocab_size=265)
    say(folder, "tokenizer_config.json", eos_token=END)
    held = json.loads((folder / "tokenizer.json").read_text())
    held["model"]["byte_fallback"] = False
    (folder / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(
        ValueError, match=r"tokenizer.json: it must be a byte-level BPE, or one that falls back"
    ):
        hf_tokenizer.read(folder, vocab_size=265)
    held["model"]["vocab"]["ab"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"has 265 tokens, but none with the id 264"):
        hf_tokenizer.read(folder, vocab_size=400)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json is not there"):
        hf_tokenizer.read(folder, vocab_size=265)


def test_a_byte_level_one_behind_a_pattern_of_its_own(tmp_path):
    """Llama 3's kind: a pattern cuts the words, bytes follow."""
    bpe = tokenizers.Tokenizer(models.BPE())
    pattern = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\s+|\w+|[^\s\w]+"), "isolated")
    on_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer, bpe.decoder = (
        tokenizers.pre_tokenizers.Sequence([pattern, on_bytes]),
        decoders.ByteLevel(),
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=["<|end|>"]
    )
    bpe.train_from_iterator(sentences(20), trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    say(tmp_path, "tokenizer_config.json", eos_token="<|end|>")
    made = hf_tokenizer.read(tmp_path, vocab_size=290)
    text = "the quick é€ <|end|>\n"
    assert made.decode(made.encode(text)) == text
    assert made.byte_lengths[made.encode(text)].sum() == len(text.encode())
    assert made.end_of_text not in made.encode(text)
