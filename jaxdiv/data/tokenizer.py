"""Tokenizers in which every text has an encoding that decodes to it.

`Tokenizer.train` learns a byte-level BPE; `read_folder` reads the one of a Hugging Face folder.
A tokenizer that writes bytes in another way is one more entry of `_byte_lengths`.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int32

from jaxdiv import files

END_OF_TEXT = "<|endoftext|>"
_PIECE, _WORD = 2**14, 2**10  # most characters of a training piece, and of a word in it
_BEFORE_SPACE = re.compile(r"(?<=\S)(?=[ \t\n])")
MIN_VOCAB_SIZE = 257  # the 256 bytes and the end of text
FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_TEMPLATE, TEMPLATE_FILE = "chat_template", "chat_template.jinja"
_GENERATION, _MODEL, _ID = "generation_config.json", "config.json", "eos_token_id"


class ChatTemplate(NamedTuple):
    """A tokenizer's chat template in Jinja, empty if there is none, and its `bos_token`."""

    source: str = ""
    bos_token: str = ""


_NO_TEMPLATE = ChatTemplate()


class Tokenizer:
    """Wraps a BPE on bytes, or one that falls back on them.

    Special tokens inside a document are ordinary text.

    Attributes:
      vocab_size: number of tokens V.
      end_of_text, end_token: id and text of the token that ends each document.
      begin: the id of the token that begins each text, in a list; empty if there is none.
      byte_lengths: [V], UTF-8 bytes that a token stands for; 0 for special tokens.
      fingerprint: 16 hexadecimal digits over vocabulary and merges.
      chat_template: how conversations are written.

    Raises:
      ValueError: some text has no encoding, or there is no token `end_of_text` or `begin`.
    """

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        end_of_text: str = END_OF_TEXT,
        begin: str | None = None,
        chat_template: ChatTemplate = _NO_TEMPLATE,
    ):
        for token in (end_of_text, *([begin] if begin else [])):
            if bpe.token_to_id(token) is None:
                raise ValueError(f"there is no token {token}")
        bpe.encode_special_tokens = True
        bpe.no_padding()
        bpe.no_truncation()
        self._bpe, self.end_token, self._begin_token = bpe, end_of_text, begin
        self.chat_template = chat_template
        self.vocab_size: int = bpe.get_vocab_size()
        self.end_of_text: int = bpe.token_to_id(end_of_text)
        self.begin: list[int] = [bpe.token_to_id(begin)] if begin else []
        text = bpe.to_str()
        self.byte_lengths: Int32[np.ndarray, " V"] = _byte_lengths(bpe, json.loads(text))
        self.fingerprint: str = hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, control: Sequence[str] = (END_OF_TEXT,)
    ) -> "Tokenizer":
        """Learns a BPE of `vocab_size` tokens; fewer if a small corpus has no more pairs.

        The tokens `control` stand in no text; the last one ends documents.

        Raises ValueError for `vocab_size` below 257: the 256 bytes and the end of text.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"`vocab_size` must be at least {MIN_VOCAB_SIZE} (256 bytes and the end of text), "
                f"got {vocab_size}"
            )
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=list(control),
            show_progress=False,
        )
        bpe.train_from_iterator(_pieces(texts), trainer=trainer)
        return cls(bpe, control[-1])

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a file that `save` wrote. Raises ValueError, naming the file, if it is another."""
        bpe, path_of_settings = read_bpe(path), files.path_of(path).with_name(SETTINGS)
        settings = {"eos_token": END_OF_TEXT}
        if path_of_settings.exists():
            settings = files.read_json(path_of_settings)
        try:
            begin = settings.get("bos_token") if settings.get("add_bos_token") else None
            template = ChatTemplate(settings.get(_TEMPLATE, ""), settings.get("bos_token", ""))
            return cls(bpe, settings["eos_token"], begin, template)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON of `tokenizers`, atomically, and beside it the settings.

        These are the tokens that begin and end texts, and the chat template.
        """
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.end_token}
        source, bos_token = self.chat_template
        if source:
            settings |= {_TEMPLATE: source} | ({"bos_token": bos_token} if bos_token else {})
        if self._begin_token:
            settings |= {"bos_token": self._begin_token, "add_bos_token": True}
        files.write_json(files.path_of(path).with_name(SETTINGS), settings)
        files.write_text(path, self._bpe.to_str())

    def to_json(self) -> str:
        """Returns the JSON of `tokenizers`."""
        return self._bpe.to_str()

    def control_tokens(self) -> tuple[str, ...]:
        """Returns the texts of tokens that stand in no text."""
        added = self._bpe.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without tokens that begin or end it."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, encoded in parallel."""
        return [
            encoding.ids
            for encoding in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int], *, continues: bool = False) -> str:
        """Returns the text of `ids` without special tokens; invalid UTF-8 becomes U+FFFD.

        `continues` says that other tokens stand before: SentencePiece drops the space that it has
        put before a text, but not those within.
        """
        ids = [int(i) for i in ids]
        if not continues:
            return self._bpe.decode(ids, skip_special_tokens=True)
        before = self.encode("a")
        return self.decode([*before, *ids])[1:]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Cuts long texts before white space, which no token crosses, and endless words anywhere.

    The time of merging grows with the square of a word's length, and memory with the longest piece.
    """
    for text in texts:
        start = 0
        while start < len(text):
            before_space = _BEFORE_SPACE.search(text, start + _PIECE, start + _PIECE + _WORD)
            end = before_space.start() if before_space else start + _PIECE
            yield text[start:end]
            start = end


def read_bpe(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json of `tokenizers`. Raises ValueError, naming the file, if it can't."""
    try:
        return tokenizers.Tokenizer.from_str(files.path_of(path).read_bytes().decode())
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"can't read a tokenizer from {path}: {error}") from None


def _byte_lengths(
    bpe: tokenizers.Tokenizer, settings: Mapping[str, Any]
) -> Int32[np.ndarray, " V"]:
    """Counts the UTF-8 bytes of each token, by the way in which this kind of tokenizer writes them.

    Raises ValueError for a kind that can't encode every text.
    """
    is_byte_level = "ByteLevel" in json.dumps([settings["pre_tokenizer"], settings["decoder"]])
    if not is_byte_level and not settings["model"].get("byte_fallback"):
        raise ValueError(
            "it must be a byte-level BPE, or one that falls back on bytes, so that it encodes "
            "every text"
        )
    added = bpe.get_added_tokens_decoder()
    lengths = np.zeros(bpe.get_vocab_size(), np.int32)
    for i in range(len(lengths)):
        token = bpe.id_to_token(i)
        if not is_byte_level:
            lengths[i] = _sentence_piece_bytes(token)
        else:  # each byte is one character, but tokens that were added are plain text
            lengths[i] = len(token.encode() if i in added else token)
    lengths[[i for i in added if added[i].special]] = 0
    return lengths


def _sentence_piece_bytes(token: str) -> int:
    # SentencePiece writes a space as ▁, and a byte that no other token has as <0x0A>.
    if len(token) == 6 and token.startswith("<0x"):
        return 1
    return len(token.replace("▁", " ").encode())


def read_folder(folder: str | os.PathLike, *, vocab_size: int) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face folder.

    It has unused tokens for rows that only the model has. The end of text is the `eos_token` of
    tokenizer_config.json, or else the (first) `eos_token_id` of generation_config.json or of
    config.json. A token begins each text if the tokenizer puts one before it by itself, or if
    tokenizer_config.json has `add_bos_token`.

    Args:
      folder: with tokenizer.json.
      vocab_size: V of the model.

    Raises:
      ValueError: tokenizer.json can't be read or used, has more tokens than the model or leaves ids
        out, or no file names the token that ends a document.
    """
    folder = pathlib.Path(folder)
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{path} is not there; a teacher comes with its tokenizer")
    bpe = read_bpe(path)
    return complete(
        bpe,
        _end_of_text(folder, bpe),
        _begin(folder, bpe),
        _chat_template(folder),
        vocab_size=vocab_size,
        path=path,
        model=folder / _MODEL,
    )


def complete(
    bpe: tokenizers.Tokenizer,
    end_of_text: str,
    begin: str | None,
    chat_template: ChatTemplate,
    *,
    vocab_size: int,
    path: pathlib.Path,
    model: pathlib.Path,
) -> Tokenizer:
    """Adds unused tokens for rows that only the model has.

    Raises ValueError, naming the tokenizer's `path`, if it has more tokens than the `model`, leaves
    ids out or can't be used.
    """
    size = bpe.get_vocab_size()
    if size > vocab_size:
        raise ValueError(
            f"{path} has {size} tokens, more than the `vocab_size` {vocab_size} of {model}"
        )
    missing = next((i for i in range(size) if bpe.id_to_token(i) is None), None)
    if missing is not None:
        raise ValueError(f"{path} has {size} tokens, but none with the id {missing}")
    bpe.add_special_tokens(
        [tokenizers.AddedToken(f"<|unused {i}|>", special=True) for i in range(size, vocab_size)]
    )
    try:
        return Tokenizer(bpe, end_of_text, begin, chat_template)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _begin(folder: pathlib.Path, bpe: tokenizers.Tokenizer) -> str | None:
    """Returns the token that begins every text, or None.

    The tokenizer's own template counts more than a setting, as in transformers 5.
    """
    encoding = bpe.encode("a")
    is_special = [*map(bool, encoding.special_tokens_mask), False]
    if before := encoding.tokens[: is_special.index(False)]:
        if len(before) > 1:
            raise ValueError(
                f"{folder / FILE} puts {', '.join(before)} before each text; one token can stand "
                "there"
            )
        return before[0]
    settings = _settings(folder)
    token = _bos_token(settings)
    return token if settings.get("add_bos_token") is True and token else None


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    settings = files.read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    return settings if isinstance(settings, dict) else {}


def _bos_token(settings: Mapping[str, Any]) -> str:
    token = settings.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def _chat_template(folder: pathlib.Path) -> ChatTemplate:
    """Reads the chat template: a file, or the one or the default of those in the settings."""
    settings, path = _settings(folder), folder / TEMPLATE_FILE
    try:
        source = path.read_bytes().decode() if path.is_file() else settings.get(_TEMPLATE)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if isinstance(source, list):
        named = {
            item.get("name"): item.get("template") for item in source if isinstance(item, dict)
        }
        source = named.get("default")
    return ChatTemplate(source if isinstance(source, str) else "", _bos_token(settings))


def _end_of_text(folder: pathlib.Path, bpe: tokenizers.Tokenizer) -> str:
    """Returns the token that ends a document, from the first file that names one."""
    for name, key in ((SETTINGS, "eos_token"), (_GENERATION, _ID), (_MODEL, _ID)):
        path = folder / name
        settings = files.read_json(path) if path.is_file() else {}
        value = settings.get(key) if isinstance(settings, dict) else None
        if key == _ID:
            value = value[0] if isinstance(value, list) and value else value
            value = bpe.id_to_token(value) if isinstance(value, int) else None
        elif isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    raise ValueError(
        f"{folder} does not say which token ends a document: set `eos_token` in {SETTINGS}, or "
        f"`{_ID}` in {_GENERATION} or {_MODEL}"
    )
