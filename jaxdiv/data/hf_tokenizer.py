"""The tokenizer of a Llama folder."""

import os
import pathlib

import tokenizers

from jaxdiv import files
from jaxdiv.data.tokenizer import FILE, SETTINGS, Tokenizer, read_bpe

_GENERATION, _MODEL = "generation_config.json", "config.json"


def read(folder: str | os.PathLike, *, vocab_size: int) -> Tokenizer:
    """The folder's tokenizer with as many tokens as the model has: the model's further rows become
    unused tokens.

    A document is ended by the `eos_token` of tokenizer_config.json, or else the (first)
    `eos_token_id` of generation_config.json or config.json, whichever is found first.

    Args:
      folder: with tokenizer.json.
      vocab_size: V of the model.

    Raises:
      ValueError: tokenizer.json can't be read or used, has more tokens than the model or leaves ids
        out, or no file says which token ends a document.
    """
    folder = pathlib.Path(folder)
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{path} is not there; a teacher comes with its tokenizer")
    bpe = read_bpe(path)
    size = bpe.get_vocab_size()
    if size > vocab_size:
        raise ValueError(
            f"{path} has {size} tokens, more than the `vocab_size` {vocab_size} of {folder / _MODEL}"
        )
    missing = next((i for i in range(size) if bpe.id_to_token(i) is None), None)
    if missing is not None:
        raise ValueError(f"{path} has {size} tokens, but none with the id {missing}")
    end_of_text = _end_of_text(folder, bpe)
    bpe.add_special_tokens(
        [tokenizers.AddedToken(f"<|unused {i}|>", special=True) for i in range(size, vocab_size)]
    )
    try:
        return Tokenizer(bpe, end_of_text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _end_of_text(folder, bpe):
    token = _value(folder / SETTINGS, "eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
        return token
    for name in (_GENERATION, _MODEL):
        ids = _value(folder / name, "eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(first, int) and bpe.id_to_token(first) is not None:
            return bpe.id_to_token(first)
    raise ValueError(
        f"{folder} does not say which token ends a document: set `eos_token` in {SETTINGS}, or `eos_token_id` in "
        f"{_GENERATION} or {_MODEL}"
    )


def _value(path, key):
    settings = files.read_json(path) if path.is_file() else {}
    return settings.get(key) if isinstance(settings, dict) else None
