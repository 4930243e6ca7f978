"""A byte-level BPE tokenizer: every text has an encoding, and decodes to itself."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32

from jaxdiv import files

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # the 256 bytes and the end of text


class Tokenizer:
    """Wraps a trained byte-level BPE. The text `<|endoftext|>` inside a document is ordinary text.

    Attributes:
      vocab_size: number of tokens V.
      end_of_text: id of the token that ends each document.
      byte_lengths: [V] UTF-8 bytes a token stands for; 0 for the end of text.
      fingerprint: 16 hexadecimal digits over vocabulary and merges.
    """

    def __init__(self, bpe: tokenizers.Tokenizer):
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self.vocab_size: int = bpe.get_vocab_size()
        self.end_of_text: int = bpe.token_to_id(END_OF_TEXT)
        self.byte_lengths: Int32[np.ndarray, "V"] = self._byte_lengths()
        self.fingerprint: str = hashlib.sha256(bpe.to_str().encode()).hexdigest()[:16]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns merges until there are `vocab_size` tokens; fewer where a small corpus has no more pairs.

        Raises ValueError for `vocab_size` below 257: the 256 bytes and the end of text.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"`vocab_size` must be at least {MIN_VOCAB_SIZE} (256 bytes and the end of text), got {vocab_size}"
            )
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[END_OF_TEXT],
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer=trainer)
        return cls(bpe)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads what `save` wrote. Raises ValueError, naming the file, if it holds anything else."""
        try:
            bpe = tokenizers.Tokenizer.from_str(pathlib.Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(f"can't read a tokenizer from {path}: {error}") from None
        byte_level = isinstance(bpe.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel)
        if not byte_level or bpe.token_to_id(END_OF_TEXT) is None:
            raise ValueError(f"{path} must hold a byte-level BPE with the token {END_OF_TEXT}")
        return cls(bpe)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON of `tokenizers` to `path`, atomically."""
        files.write_text(path, self._bpe.to_str())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without an end of text."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, encoded side by side."""
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; ends of text vanish, bytes that are no UTF-8 become U+FFFD."""
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    def _byte_lengths(self):
        # Byte-level BPE writes each byte as one character.
        lengths = np.array([len(self._bpe.id_to_token(i)) for i in range(self.vocab_size)], np.int32)
        lengths[self.end_of_text] = 0
        return lengths
