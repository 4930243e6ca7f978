"""Token batches from texts: packing, shuffling, sharding and evaluation windows."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from jaxdiv import schema
from jaxdiv.data import arrays
from jaxdiv.data.chat_templates import ChatEncoder
from jaxdiv.data.chats import ASSISTANT, Chat
from jaxdiv.data.documents import MOST_BYTES, SPLITS, Documents
from jaxdiv.data.tokenizer import Tokenizer

_GROUP = 64  # documents that are encoded at once, at most


@dataclasses.dataclass(frozen=True)
class Tokens(arrays.StoredArrays):
    """Documents one after the other, each ended by the end of text.

    Attributes:
      ids: [n] tokens.
      offsets: [K+1]; document k is `ids[offsets[k]:offsets[k+1]]`.
      is_assistant: [n], of chats: True where the assistant wrote the token, never at the first of a
        document.
    """

    ids: Int32[np.ndarray, " n"]
    offsets: Int64[np.ndarray, " offsets"]
    is_assistant: Bool[np.ndarray, " n"] | None = None

    KIND = "tokens"

    def __post_init__(self):
        ids, offsets = self.ids, self.offsets
        if (
            (ids.dtype, ids.ndim, offsets.dtype, offsets.ndim) != (np.int32, 1, np.int64, 1)
            or offsets[:1].tolist() != [0]
            or offsets[-1] != len(ids)
            or (np.diff(offsets) <= 0).any()
            or not (
                self.is_assistant is None
                or (self.is_assistant.dtype, self.is_assistant.shape) == (bool, ids.shape)
            )
        ):
            raise ValueError("these are no documents one after the other")

    @property
    def end_of_text(self) -> int:
        """Id of the token that ends each document; in texts it is nowhere else."""
        return int(self.ids[-1])

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest document, its end of text included; 0 without documents."""
        return int(np.diff(self.offsets).max(initial=0))

    def is_label(self, loss_on: str) -> Bool[np.ndarray, " n"]:
        """Returns [n], True where a token is predicted.

        These are all but the first of each document, or, where `loss_on` is `assistant`, those of
        chats that the assistant wrote.
        """
        if loss_on == ASSISTANT and self.is_assistant is not None:
            return self.is_assistant
        is_label = np.ones(len(self.ids), bool)
        is_label[self.offsets[:-1]] = False
        return is_label

    def prompt_ends(self, length: int) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
        """Finds prompts of `length` tokens.

        They are the first tokens of each longer document, or in chats the last ones before each of
        the assistant's turns that has as many before it.

        Returns:
          where in `ids` they end, and their documents.
        """
        if self.is_assistant is None:
            document = np.flatnonzero(np.diff(self.offsets) > length)
            return self.offsets[document] + length, document
        ends = np.flatnonzero(self.is_assistant[1:] & ~self.is_assistant[:-1]) + 1
        document = np.searchsorted(self.offsets, ends, side="right") - 1
        is_long = ends - self.offsets[document] >= length
        return ends[is_long], document[is_long]


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
    """Tokenizes each split, documents in their order, each ended by the end of text.

    Raises ValueError for chats that the tokenizer's template can't write.
    """
    splits, encoder = {}, ChatEncoder(bpe) if documents.chats else None
    for split in SPLITS:
        if encoder:
            parts, turns = zip(
                *(_encode_chat(encoder, text) for text in getattr(documents, split)), strict=True
            )
            is_assistant = np.concatenate(turns)
        else:
            parts, is_assistant = _encode_texts(getattr(documents, split), bpe), None
        sizes = np.array([0, *map(len, parts)], np.int64)
        splits[split] = Tokens(np.concatenate(parts), np.cumsum(sizes), is_assistant)
    return splits


def _encode_texts(texts: Sequence[str], bpe: Tokenizer) -> list[Int32[np.ndarray, " _"]]:
    return [
        np.array([*bpe.begin, *ids, bpe.end_of_text], np.int32)
        for group in _groups(texts)
        for ids in bpe.encode_batch(group)
    ]


def _encode_chat(
    encoder: ChatEncoder, text: str
) -> tuple[Int32[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    chat = Chat.from_document(text)
    try:
        ids, is_assistant = encoder.encode(chat)
    except ValueError as error:
        raise ValueError(f"{error}; the chat begins with {chat.messages[0][1][:60]!r}") from None
    return np.array(ids, np.int32), is_assistant


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
    loss_on: str = "all",
    prompt_tokens: int = 0,
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
      loss_on: tokens that are predicted, as of `Tokens.is_label`.
      prompt_tokens: P of the prompts that batches of chats hold; 0 for none.

    Returns:
      Iterator of {"inputs": [b, L] int32, "labels": [b, L] int32, "weights": [b, L] float32} of
      these rows; a weight is 1 where the label is predicted, else 0. Chats with prompts have
      "prompts": [b, P] int32 too, each up to where an assistant's turn begins. `get_state` and
      `set_state` save and restore the position alone, whatever `rows`: compare seed, sizes and data
      yourself.

    Raises:
      ValueError: fewer windows than rows, sizes below 1, or no prompt.
    """
    _check_sizes(sequence_length=sequence_length, batch_size=batch_size)
    windows = training_windows(tokens, sequence_length)
    if windows < batch_size:
        raise ValueError(
            f"a batch of {batch_size} x {sequence_length} needs "
            f"{batch_size * sequence_length + 1} tokens, got {len(tokens.ids)}; use a smaller "
            "batch_size or sequence_length, or more text"
        )

    is_label, ends = tokens.is_label(loss_on), None
    if prompt_tokens and tokens.is_assistant is not None:
        ends, _ = _prompt_ends(tokens, prompt_tokens)

    def make(numbers):
        positions = numbers[:, None] * sequence_length + np.arange(sequence_length + 1)
        window = tokens.ids[positions]
        batch = {
            "inputs": np.ascontiguousarray(window[:, :-1]),
            "labels": np.ascontiguousarray(window[:, 1:]),
            "weights": is_label[positions[:, 1:]].astype(np.float32),
        }
        if ends is not None:
            # In the order of windows, so that an epoch goes through all chats.
            near = ends[numbers * len(ends) // windows]
            batch["prompts"] = tokens.ids[near[:, None] + np.arange(-prompt_tokens, 0)]
        return batch

    return endless(windows, batch_size, seed, make, rows)


def training_windows(tokens: Tokens, sequence_length: int) -> int:
    """Returns the number of rows of an epoch of `batches`."""
    return (len(tokens.ids) - 1) // sequence_length


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
    dataset = _shuffled(examples, seed).repeat()
    # Grain can't take the length of an endless data set in batches of one.
    dataset = (
        dataset.batch(batch_size)
        if batch_size > 1
        else dataset.map(lambda number: np.array([number]))
    )
    dataset = dataset.map(lambda numbers: make(numbers[rows or slice(None)]))
    # A batch takes microseconds: threads would only take cores from training.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def first_epoch(examples: int, seed: int) -> Int[np.ndarray, " examples"]:
    """Returns the numbers of all examples in the order of the first epoch of `endless`."""
    shuffled = _shuffled(examples, seed)
    return np.array([shuffled[position] for position in range(examples)])


def _shuffled(examples: int, seed: int) -> grain.MapDataset:
    # Grain shuffles epoch e by seed + e: neighboring seeds would share their orders.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(examples).shuffle(seed=spread)


def evaluation_windows(
    tokens: Tokens,
    *,
    sequence_length: int,
    end_of_text: int,
    max_tokens: int = schema.MAX_DOCUMENT_TOKENS,
    max_documents: int | None = None,
    loss_on: str = "all",
) -> Windows:
    """Cuts the first `max_tokens` of each of the first `max_documents` documents in windows.

    Within a document every token but the first is a label once, or those that `loss_on` has as of
    `Tokens.is_label`; none is predicted across two documents. Windows without a label, and
    documents without such a window, are left out. Padding is `end_of_text`. Raises ValueError for
    sizes below 1.
    """
    _check_sizes(sequence_length=sequence_length, max_tokens=max_tokens - 1)
    is_label, parts, document = tokens.is_label(loss_on), [], []
    left = tokens.documents if max_documents is None else max_documents
    for k in range(tokens.documents):
        if not left:
            break
        first, last = tokens.offsets[k], min(tokens.offsets[k + 1], tokens.offsets[k] + max_tokens)
        for start in range(first, last - 1, sequence_length):
            part = slice(start, min(start + sequence_length + 1, last))
            if is_label[part][1:].any():
                parts.append(part)
                document.append(k)
        left -= k in document[-1:]
    padded = np.full((len(parts), sequence_length + 1), end_of_text, np.int32)
    weights = np.zeros((len(parts), sequence_length), np.float32)
    for row, part in enumerate(parts):
        size = part.stop - part.start
        padded[row, :size] = tokens.ids[part]
        weights[row, : size - 1] = is_label[part][1:]
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
    """Returns a prompt of each document that has one, the first of `Tokens.prompt_ends`.

    Args:
      tokens: the documents.
      length: P.
      max_documents: number of prompts at most; None for all.

    Returns:
      prompts [K, P], and each one's document [K] by number.

    Raises:
      ValueError: there is none.
    """
    _check_sizes(length=length)
    ends, document = _prompt_ends(tokens, length)
    document, first = np.unique(document, return_index=True)
    ends, document = ends[first][:max_documents], document[:max_documents].astype(np.int32)
    return tokens.ids[ends[:, None] + np.arange(-length, 0)], document


def _prompt_ends(
    tokens: Tokens, length: int
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
    ends, document = tokens.prompt_ends(length)
    if not len(ends):
        if tokens.is_assistant is not None:
            raise ValueError(f"no chat has an assistant's turn after {length} tokens or more")
        raise ValueError(
            f"no document has more than {length} tokens; the longest has {tokens.longest}"
        )
    return ends, document


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}")
