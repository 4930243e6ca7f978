"""Tokenizers, trained ones and those of Hugging Face folders: lossless, safe on disk, as large as
the model, with an end of text."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from experiments.common.transcript import Pieces
from jaxdiv.data import Tokenizer, tokenizer
from tests.fixtures_data import sentences

END, MARK = "</s>", "<|endoftext|>"


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train(sentences(50), 300)


def sentence_piece():
    """Llama 2's kind: spaces are ▁, one stands before the text, and what has no token falls back on
    bytes."""
    tokens = ["<unk>", "<s>", END, *(f"<0x{i:02X}>" for i in range(256))]
    tokens += ["▁", "a", "b", "é", "▁a", "ab"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    options = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    bpe = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("a", "b")], **options))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    bpe.decoder = decoders.Sequence(
        [spaces[0], decoders.ByteFallback(), decoders.Fuse(), spaces[1]]
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
    """A folder's tokenizer as a run saves it."""
    folder = tmp_path_factory.mktemp("piece")
    sentence_piece().save(str(folder / "tokenizer.json"))
    write(folder, "config.json", eos_token_id=2)
    tokenizer.read_folder(folder, vocab_size=270).save(folder / "run" / "tokenizer.json")
    return Tokenizer.load(folder / "run" / "tokenizer.json")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_decodes_to_itself(bpe, piece, text):
    # SentencePiece puts a space before the text.
    for each, space in ((bpe, 0), (piece, bool(text))):
        ids = each.encode(text)
        assert each.decode(ids) == text
        assert each.byte_lengths[ids].sum() == len(text.encode()) + space
        assert each.end_of_text not in ids


def test_the_end_of_text_in_a_document_is_text(bpe, piece):
    for each, mark in ((bpe, MARK), (piece, END)):
        text = f"a {mark} b"
        ids = each.encode(text)
        assert each.end_of_text not in ids
        assert each.decode(ids) == text
        assert each.encode_batch([text, ""]) == [ids, each.encode("")]


def test_tokens_one_by_one_decode_to_the_text_that_goes_on(bpe, piece):
    for each in (bpe, piece):
        text, more = "a ab", " ab  a\n 你 "
        first, ids = each.encode(text), each.encode(text + more)
        assert ids[: len(first)] == first
        stream = Pieces(each)
        parts = [stream.add(i) for i in ids[len(first) :]]
        assert "".join(parts) + stream.rest() == more
        assert sum(map(bool, parts)) > 5
        assert each.decode(ids[len(first) :], continues=True) == more
        assert each.decode([], continues=True) == ""


def test_vocabulary(bpe):
    assert bpe.vocab_size == 300 == len(bpe.byte_lengths)
    assert (bpe.byte_lengths == 0).nonzero()[0].tolist() == [bpe.end_of_text]
    assert bpe.decode([bpe.end_of_text, *bpe.encode("fox")]) == "fox"
    text = sentences(9)[8]
    assert len(bpe.encode(text)) < len(text) / 2
    assert Tokenizer.train(["ab"], 300).vocab_size == 258  # a small corpus has no more pairs
    with pytest.raises(ValueError, match=r"`vocab_size` must be at least 257 .*, got 256"):
        Tokenizer.train(["a"], 256)


def test_training_is_deterministic(bpe):
    assert Tokenizer.train(iter(sentences(50)), 300).fingerprint == bpe.fingerprint
    assert Tokenizer.train(sentences(50), 301).fingerprint != bpe.fingerprint


def test_save_and_load(bpe, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = f"def f():\r\n\treturn '{MARK}é'"
    assert again.fingerprint == bpe.fingerprint
    assert again.encode(text) == bpe.encode(text)
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


def test_long_texts_teach_in_pieces_what_they_teach_whole(monkeypatch):
    texts = [" ".join(f"word{i % 97} = {i % 13}\n" for i in range(9000))]
    cut = Tokenizer.train(texts, 400)
    monkeypatch.setattr(tokenizer, "_PIECE", 2**30)
    assert cut.fingerprint == Tokenizer.train(texts, 400).fingerprint


def test_an_endless_word_is_learned_from_in_seconds():
    word = "a" * 2**20
    bpe = Tokenizer.train([word], 300)
    assert bpe.decode(bpe.encode(word)) == word


def test_rows_that_only_the_model_has_are_never_used(piece):
    assert piece.vocab_size == 270 == len(piece.byte_lengths)
    assert piece.end_of_text == 2
    assert max(piece.encode("ab <|unused 266|> é€")) < 265
    assert piece.decode([4, 2, 269]) == "\x01"


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


TEMPLATES = {"llama": ("<s>",), "both ends": ("<s>", END), "an end": (None, END), "none": None}


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": False}, {"add_bos_token": True}])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["llama 2", "llama 3"])
def test_what_begins_a_text(kind, template, settings, tmp_path):
    """The tokenizer's template says it, as Llama's do, or the setting, as older Gemmas'."""
    bpe = sentence_piece()
    if kind == "llama 3":
        tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
        bpe = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        bpe.add_special_tokens(["<s>", END])
    if around := TEMPLATES[template]:
        before, *after = (f"{token}:0 " if token else "" for token in around)
        template_processor = processors.TemplateProcessing(
            single=f"{before}$A:0 {''.join(after)}".strip(),
            special_tokens=[(token, bpe.token_to_id(token)) for token in around if token],
        )
        bytes_processor = processors.ByteLevel(trim_offsets=False)
        steps = [bytes_processor, template_processor] if kind == "llama 3" else [template_processor]
        bpe.post_processor = processors.Sequence(steps)
    bpe.save(str(tmp_path / "tokenizer.json"))
    bos = {"content": "<s>"} if kind == "llama 2" else "<s>"
    write(tmp_path, "tokenizer_config.json", eos_token=END, bos_token=bos, **settings)
    read = tokenizer.read_folder(tmp_path, vocab_size=270)
    begins = bool(around and around[0]) or settings.get("add_bos_token", False)
    assert read.begin == [bpe.token_to_id("<s>")] * begins
    assert read.encode("ab")[0] != bpe.token_to_id("<s>")
    read.save(tmp_path / "run" / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "run" / "tokenizer.json").begin == read.begin


def test_two_tokens_before_each_text_are_refused(folder):
    bpe = sentence_piece()
    special = [("<s>", 1), (END, 2)]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"<s>:0 {END}:0 $A:0", special_tokens=special
    )
    bpe.save(str(folder / "tokenizer.json"))
    write(folder, "config.json", eos_token_id=2)
    with pytest.raises(ValueError, match=r"tokenizer\.json puts <s>, </s> before each text; one"):
        tokenizer.read_folder(folder, vocab_size=270)


def test_unusable_tokenizers_are_named(folder):
    def check_refusal(message, vocab_size=265):
        with pytest.raises(ValueError, match=message):
            tokenizer.read_folder(folder, vocab_size=vocab_size)

    check_refusal("does not say which token ends a document: set `eos_token`")
    write(folder, MODEL, eos_token_id=2)
    check_refusal("tokenizer.json has 265 tokens, more than the `vocab_size` 264", vocab_size=264)
    write(folder, TOKENIZER, eos_token="<end>")
    check_refusal("tokenizer.json: there is no token <end>")
    write(folder, TOKENIZER, eos_token=END)
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["model"]["byte_fallback"] = False
    write(folder, "tokenizer.json", **settings)
    check_refusal("tokenizer.json: it must be a byte-level BPE, or one that falls back")
    settings["model"]["vocab"]["ab"] = 300
    write(folder, "tokenizer.json", **settings)
    check_refusal("has 265 tokens, but none with the id 264", vocab_size=400)
    (folder / "tokenizer.json").unlink()
    check_refusal("tokenizer.json is not there")


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
