"""Token batches from texts: packing, shuffling, sharding and evaluation windows."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from jaxdiv import schema
from jaxdiv.data import arrays
from jaxdiv.data.documents import MOST_BYTES, SPLITS, Documents
from jaxdiv.data.tokenizer import Tokenizer

_GROUP = 64  # documents that are encoded at once, at most


@dataclasses.dataclass(frozen=True)
class Tokens(arrays.StoredArrays):
    """Documents one after the other, each ended by the end of text.

    Attributes:
      ids: [n] tokens.
      offsets: [K+1]; document k is `ids[offsets[k]:offsets[k+1]]`.
    """

    ids: Int32[np.ndarray, " n"]
    offsets: Int64[np.ndarray, " offsets"]

    KIND = "tokens"

    def __post_init__(self):
        ids, offsets = self.ids, self.offsets
        if (
            (ids.dtype, ids.ndim, offsets.dtype, offsets.ndim) != (np.int32, 1, np.int64, 1)
            or offsets[:1].tolist() != [0]
            or offsets[-1] != len(ids)
            or (np.diff(offsets) <= 0).any()
        ):
            raise ValueError("these are no documents one after the other")

    @property
    def end_of_text(self) -> int:
        """Id of the token that ends each document and is nowhere else."""
        return int(self.ids[-1])

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest document, its end of text included; 0 without documents."""
        return int(np.diff(self.offsets).max(initial=0))


@dataclasses.dataclass(frozen=True)
class Windows:
    """Documents cut in windows, for teacher-forced evaluation.

    Attributes:
      inputs, labels: [W, L] tokens; the label is the next token of the same document. Inputs of
        images are [W, X, Y, C], and L is 1.
      weights: [W, L], 1 for a label, 0 in padding.
      document: [W], number of the document in its `Tokens`, ascending.
    """

    inputs: Int32[np.ndarray, "W L"] | Float32[np.ndarray, "W X Y C"]
    labels: Int32[np.ndarray, "W L"]
    weights: Float32[np.ndarray, "W L"]
    document: Int32[np.ndarray, " W"]


def tokenize(documents: Documents, bpe: Tokenizer) -> dict[str, Tokens]:
    """Tokenizes each split, documents in their order, each ended by the end of text."""
    splits = {}
    for split in SPLITS:
        parts = [
            np.array([*bpe.begin, *ids, bpe.end_of_text], np.int32)
            for texts in _groups(getattr(documents, split))
            for ids in bpe.encode_batch(texts)
        ]
        sizes = np.array([0, *map(len, parts)], np.int64)
        splits[split] = Tokens(ids=np.concatenate(parts), offsets=np.cumsum(sizes))
    return splits


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cuts `texts` into groups of at most 64 texts and little more than one document's size.

    The encodings that `tokenizers` keeps of a group take many times the group's size.
    """
    start, size = 0, 0
    for end, text in enumerate(texts):
        if end > start and (size + len(text) > MOST_BYTES or end - start == _GROUP):
            yield texts[start:end]
            start, size = end, 0
        size += len(text)
    yield texts[start:]


def batches(
    tokens: Tokens,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    rows: slice | None = None,
) -> grain.DatasetIterator:
    """Iterates endlessly over training batches; batch i depends on `seed` and i alone.

    The documents are one stream, cut in windows of L+1 tokens at stride L, so that every token but
    the first (and a rest shorter than a window) is a label once an epoch. Each epoch has its own
    order.

    Args:
      tokens: the training documents.
      sequence_length: L.
      batch_size: rows B of a batch, over all processes.
      seed: of the order.
      rows: those of this process; None for all.

    Returns:
      Iterator of {"inputs": [b, L] int32, "labels": [b, L] int32, "weights": [b, L] float32} of
      these rows; a weight is 0 where the input ends a document, else 1. `get_state` and
      `set_state` save and restore the position alone, whatever `rows`: compare seed, sizes and data
      yourself.

    Raises:
      ValueError: fewer windows than rows, or sizes below 1.
    """
    _check_sizes(sequence_length=sequence_length, batch_size=batch_size)
    windows = (len(tokens.ids) - 1) // sequence_length
    if windows < batch_size:
        raise ValueError(
            f"a batch of {batch_size} x {sequence_length} needs "
            f"{batch_size * sequence_length + 1} tokens, got {len(tokens.ids)}; use a smaller "
            "batch_size or sequence_length, or more text"
        )

    def make(numbers):
        positions = numbers[:, None] * sequence_length + np.arange(sequence_length + 1)
        window = tokens.ids[positions]
        inputs = np.ascontiguousarray(window[:, :-1])
        return {
            "inputs": inputs,
            "labels": np.ascontiguousarray(window[:, 1:]),
            "weights": (inputs != tokens.end_of_text).astype(np.float32),
        }

    return endless(windows, batch_size, seed, make, rows)


def endless(
    examples: int,
    batch_size: int,
    seed: int,
    make: Callable[[Int[np.ndarray, " b"]], Mapping[str, np.ndarray]],
    rows: slice | None,
) -> grain.DatasetIterator:
    """Iterates over batches, `make(numbers)` of the examples in `rows` or all rows.

    Each epoch has its own order.
    """
    # Grain shuffles epoch e by seed + e: neighboring seeds would share their orders.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    dataset = grain.MapDataset.range(examples).shuffle(seed=spread).repeat()
    # Grain can't take the length of an endless data set in batches of one.
    dataset = (
        dataset.batch(batch_size)
        if batch_size > 1
        else dataset.map(lambda number: np.array([number]))
    )
    dataset = dataset.map(lambda numbers: make(numbers[rows or slice(None)]))
    # A batch takes microseconds: threads would only take cores from training.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def evaluation_windows(
    tokens: Tokens,
    *,
    sequence_length: int,
    end_of_text: int,
    max_tokens: int = schema.MAX_DOCUMENT_TOKENS,
    max_documents: int | None = None,
) -> Windows:
    """Cuts the first `max_tokens` of each of the first `max_documents` documents in windows.

    Within a document every token but the first is a label once; none is predicted across two
    documents. Padding is `end_of_text`. Raises ValueError for sizes below 1.
    """
    _check_sizes(sequence_length=sequence_length, max_tokens=max_tokens - 1)
    parts, document = [], []
    for k in range(tokens.documents)[:max_documents]:
        ids = tokens.ids[tokens.offsets[k] : tokens.offsets[k + 1]][:max_tokens]
        for start in range(0, len(ids) - 1, sequence_length):
            parts.append(ids[start : start + sequence_length + 1])
            document.append(k)
    padded = np.full((len(parts), sequence_length + 1), end_of_text, np.int32)
    weights = np.zeros((len(parts), sequence_length), np.float32)
    for row, part in enumerate(parts):
        padded[row, : len(part)] = part
        weights[row, : len(part) - 1] = 1.0
    return Windows(
        inputs=padded[:, :-1],
        labels=padded[:, 1:],
        weights=weights,
        document=np.array(document, np.int32),
    )


def blocks(arrays: Sequence[np.ndarray], rows: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Cuts arrays of one length into blocks of `rows`; zeros fill the last block."""
    for start in range(0, len(arrays[0]), rows):
        cut = [array[start : start + rows] for array in arrays]
        yield tuple(
            np.pad(part, [(0, rows - len(part))] + [(0, 0)] * (part.ndim - 1)) for part in cut
        )


def prompts(
    tokens: Tokens, *, length: int, max_documents: int | None = None
) -> tuple[Int32[np.ndarray, "K P"], Int32[np.ndarray, " K"]]:
    """Returns prompts: the first `length` tokens of each document that has more than that.

    Args:
      tokens: the documents.
      length: P.
      max_documents: number of prompts at most; None for all.

    Returns:
      prompts [K, P], and each one's document [K] by number.

    Raises:
      ValueError: no document is longer than `length`.
    """
    _check_sizes(length=length)
    document = np.flatnonzero(np.diff(tokens.offsets) > length)[:max_documents].astype(np.int32)
    if not len(document):
        raise ValueError(
            f"no document has more than {length} tokens; the longest has {tokens.longest}"
        )
    return tokens.ids[tokens.offsets[document, None] + np.arange(length)], document


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}")
