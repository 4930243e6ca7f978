"""Rebuilds the tokenizer of a GGUF file from its fields `tokenizer.ggml.*`.

Two kinds are known: `gpt2`, a byte-level BPE whose `pre` names how text is split, and `llama`, a
SentencePiece model whose merges follow from the scores of its pieces.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from jaxdiv.data.tokenizer import Tokenizer, complete

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # token types
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Splits of text before merging, as in each model's own tokenizer.json.
_SPLITS = {
    "llama-bpe": _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def read(fields: Mapping[str, Any], path: pathlib.Path, *, vocab_size: int) -> Tokenizer:
    """Rebuilds the tokenizer of a GGUF file's fields, with unused tokens for other rows.

    Args:
      fields: of the file, by name.
      path: of the file.
      vocab_size: V of the model.

    Raises:
      ValueError: there is no tokenizer, one of an unknown kind, or none of its tokens ends a text.
    """
    bpe, pieces = build(fields, str(path)), fields[f"{_PREFIX}tokens"]
    end = fields.get(f"{_PREFIX}eos_token_id")
    if end is None or not 0 <= end < len(pieces):
        raise ValueError(f"{path}: `{_PREFIX}eos_token_id` must be the id of a token, is {end!r}")
    begin = None
    # SentencePiece models begin every text with a token unless the file denies it.
    if fields.get(f"{_PREFIX}add_bos_token", fields[f"{_PREFIX}model"] == "llama"):
        begin = pieces[fields[f"{_PREFIX}bos_token_id"]]
    return complete(bpe, pieces[end], begin, vocab_size=vocab_size, path=path, model=path)


def build(fields: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """Builds the tokenizer of a GGUF file's fields.

    Args:
      fields: of the file, by name.
      where: the file, for messages.

    Raises:
      ValueError: there is no tokenizer, or one of an unknown kind.
    """
    kind = fields.get(f"{_PREFIX}model")
    pieces: Sequence[str] = fields.get(f"{_PREFIX}tokens") or []
    if not pieces:
        raise ValueError(f"{where} holds no tokenizer (`{_PREFIX}tokens`)")
    if kind not in _BUILDERS:
        raise ValueError(
            f"{where}: the tokenizer `{_PREFIX}model` = {kind!r} is not known; known: "
            f"{', '.join(_BUILDERS)}"
        )
    bpe = _BUILDERS[kind](fields, {piece: i for i, piece in enumerate(pieces)}, where)
    types = fields.get(f"{_PREFIX}token_type") or []
    # The ids of tokens that are there already stay.
    for special, number in ((True, _CONTROL), (False, _USER_DEFINED)):
        tokens = [piece for piece, kind in zip(pieces, types, strict=False) if kind == number]
        added = [AddedToken(token, special=special, normalized=False) for token in tokens]
        (bpe.add_special_tokens if special else bpe.add_tokens)(added)
    return bpe


def _byte_level(
    fields: Mapping[str, Any], vocabulary: dict[str, int], where: str
) -> tokenizers.Tokenizer:
    pre = fields.get(f"{_PREFIX}pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get(f"{_PREFIX}merges") or []]
    # Llama 3 takes a word that is a token as it is, without merging.
    bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre in _SPLITS:
        steps = [pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated")]
    else:
        names = ", ".join(("smollm", *_SPLITS))
        raise ValueError(
            f"{where}: the tokenizer's `{_PREFIX}pre` = {pre!r} is not known; known: {names}"
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre == "smollm")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    bpe.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        bpe.normalizer = normalizers.NFC()
    return bpe


def _sentence_piece(
    fields: Mapping[str, Any], vocabulary: dict[str, int], where: str
) -> tokenizers.Tokenizer:
    """Builds a BPE with the merges that give SentencePiece's result: the best score first."""
    scores = fields.get(f"{_PREFIX}scores") or []
    if len(scores) != len(vocabulary):
        raise ValueError(
            f"{where}: the tokenizer has {len(vocabulary):,} pieces and {len(scores):,} scores"
        )
    merges = []
    for piece, i in vocabulary.items():
        pairs = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[i], *pair) for pair in pairs]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    unknown = fields.get(f"{_PREFIX}unknown_token_id")
    bpe = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            [pair for _, *pair in map(tuple, merges)],
            unk_token=None if unknown is None else fields[f"{_PREFIX}tokens"][unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get(f"{_PREFIX}add_space_prefix", True):
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        bpe.normalizer = space
    bpe.decoder = decoders.Sequence(steps)
    return bpe


_BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece}
