"""Reads the tokenizer of a Hugging Face folder, such as a Llama's."""

import os
import pathlib

import tokenizers

from jaxdiv import files
from jaxdiv.data.tokenizer import FILE, SETTINGS, Tokenizer, read_bpe

_GENERATION, _MODEL, _ID = "generation_config.json", "config.json", "eos_token_id"


def read(folder: str | os.PathLike, *, vocab_size: int) -> Tokenizer:
    """Reads the folder's tokenizer, with unused tokens for rows that only the model has.

    The end of text is the `eos_token` of tokenizer_config.json, or else the (first) `eos_token_id`
    of generation_config.json or of config.json.

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
    size = bpe.get_vocab_size()
    if size > vocab_size:
        raise ValueError(
            f"{path} has {size} tokens, more than the `vocab_size` {vocab_size} of "
            f"{folder / _MODEL}"
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
