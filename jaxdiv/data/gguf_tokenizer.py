"""Rebuilds the tokenizer of a GGUF file from its fields `tokenizer.ggml.*`.

Two kinds are known: `gpt2`, a byte-level BPE whose `pre` names how text is split, and `llama`, a
SentencePiece model whose merges follow from the scores of its pieces.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxdiv.data.tokenizer import ChatTemplate, Tokenizer, complete

_PREFIX = "tokenizer.ggml."
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types
_SMOLLM, _LLAMA3, _QWEN2 = "smollm", "llama-bpe", "qwen2"
# Splits of text before merging, as in each model's own tokenizer.json.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA3: _SPLIT.replace("DIGITS", "{1,3}"), _QWEN2: _SPLIT.replace("DIGITS", "")}


def read(fields: Mapping[str, Any], path: pathlib.Path, *, vocab_size: int) -> Tokenizer:
    """Rebuilds the tokenizer of a GGUF file's fields, with unused tokens for other rows.

    Args:
      fields: of the file, by name.
      path: of the file.
      vocab_size: V of the model.

    Raises:
      ValueError: there is no tokenizer, one of an unknown kind or with fields that don't fit each
        other, or none of its tokens ends a text.
    """
    source = fields.get("tokenizer.chat_template", "")
    fields = {
        name.removeprefix(_PREFIX): x for name, x in fields.items() if name.startswith(_PREFIX)
    }
    try:
        bpe = _build(fields)
        end, begin = _token(fields, "eos_token_id"), None
        # What llama.cpp takes where a file does not say it.
        is_default = fields["model"] == "llama" or fields.get("pre") == _LLAMA3
        if fields.get("add_bos_token", is_default):
            begin = _token(fields, "bos_token_id")
            bpe.post_processor = processors.TemplateProcessing(
                single=f"{begin}:0 $A:0", special_tokens=[(begin, fields["bos_token_id"])]
            )
        bos_token = _token(fields, "bos_token_id") if "bos_token_id" in fields else ""
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    template = ChatTemplate(source if isinstance(source, str) else "", bos_token)
    return complete(bpe, end, begin, template, vocab_size=vocab_size, path=path, model=path)


def _token(fields: Mapping[str, Any], name: str) -> str:
    pieces, i = fields["tokens"], fields.get(name)
    if not isinstance(i, int) or not 0 <= i < len(pieces):
        raise ValueError(f"`{_PREFIX}{name}` must be the id of a token, is {i!r}")
    return pieces[i]


def _build(fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
    pieces, kind = fields.get("tokens"), fields.get("model")
    if not isinstance(pieces, list) or not pieces:
        raise ValueError(f"there is no tokenizer (`{_PREFIX}tokens`)")
    if kind not in tuple(_BUILDERS):
        raise ValueError(
            f"the tokenizer's `{_PREFIX}model` = {kind!r} is not known; known: "
            f"{', '.join(_BUILDERS)}"
        )
    fields = {"token_type": [_NORMAL] * len(pieces), **fields}
    for name in ("tokens", "token_type", *(["scores"] if kind == "llama" else [])):
        values = fields.get(name)
        if not isinstance(values, list) or len(values) != len(pieces):
            raise ValueError(f"`{_PREFIX}{name}` must have one value for each token")
    ids = {piece: i for i, piece in enumerate(pieces)}
    if not isinstance(pieces[0], str) or len(ids) < len(pieces):
        raise ValueError(f"`{_PREFIX}tokens` must be different texts")
    try:
        bpe = _BUILDERS[kind](fields, ids)
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"its tokenizer can't be built: {error}") from None
    # SentencePiece looks for a user's pieces where it has written spaces as ▁. A normalizer that
    # puts one before the text would put it before each piece, too.
    is_written = kind == "llama" and not fields.get("add_space_prefix", True)
    # The ids of tokens that are there already stay.
    control, user_defined = (
        [piece for piece, i in zip(pieces, fields["token_type"], strict=True) if i == number]
        for number in (_CONTROL, _USER_DEFINED)
    )
    bpe.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in control])
    bpe.add_tokens([AddedToken(x, normalized=is_written) for x in user_defined])
    return bpe


def _byte_level(fields: Mapping[str, Any], ids: dict[str, int]) -> tokenizers.Tokenizer:
    pre, merges = fields.get("pre"), fields.get("merges")
    if pre not in (_SMOLLM, *_SPLITS):
        raise ValueError(
            f"the tokenizer's `{_PREFIX}pre` = {pre!r} is not known; known: "
            f"{', '.join((_SMOLLM, *_SPLITS))}"
        )
    if not isinstance(merges, list) or not all(isinstance(x, str) and " " in x for x in merges):
        raise ValueError(
            f"`{_PREFIX}merges` must be texts, each of two tokens with a space between"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in merges]
    # Llama 3 takes a word that is a token as it is, without merging.
    bpe = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=pre == _LLAMA3))
    is_smollm = pre == _SMOLLM
    split = (
        pre_tokenizers.Digits(individual_digits=True)
        if is_smollm
        else pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated")
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=is_smollm)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    if pre == _QWEN2:
        bpe.normalizer = normalizers.NFC()
    return bpe


def _sentence_piece(fields: Mapping[str, Any], ids: dict[str, int]) -> tokenizers.Tokenizer:
    unknown = _token(fields, "unknown_token_id") if "unknown_token_id" in fields else None
    merges = list(_merges(fields, ids))
    bpe = tokenizers.Tokenizer(
        models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    space = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("add_space_prefix", True):
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        bpe.normalizer = space
    bpe.decoder = decoders.Sequence(steps)
    return bpe


def _merges(fields: Mapping[str, Any], ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yields the merges that give SentencePiece's result: into the piece of the best score first.

    Only normal pieces come of merges, and a user's. Of equal scores SentencePiece takes the
    leftmost pair, a BPE that of the first piece; pieces of trained models have different ones.
    """
    scores, types = fields["scores"], fields["token_type"]
    for piece in sorted(ids, key=lambda piece: -scores[ids[piece]]):
        if types[ids[piece]] in (_NORMAL, _USER_DEFINED):
            for cut in range(1, len(piece)):
                if piece[:cut] in ids and piece[cut:] in ids:
                    yield piece[:cut], piece[cut:]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece}
