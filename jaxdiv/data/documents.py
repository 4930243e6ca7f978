"""Documents in three splits, whatever their source."""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SPLITS = ("train", "validation", "test")
MOST_BYTES = 2**22  # of a document: tokenizing one takes some 300 times its size
_NAMES_SHOWN = 5  # of records that are left out
_ERRORS = "surrogateescape"  # how file names that are not UTF-8 are encoded


class Text(NamedTuple):
    name: str
    text: str


class TextRecords(NamedTuple):
    """Texts, and the names of records that are unreadable or only white space."""

    texts: list[Text]
    unreadable: list[str]
    empty: list[str]


@dataclasses.dataclass(frozen=True)
class Documents:
    """A corpus. Each split is in the order of a hash: its first K documents are a fair sample.

    Attributes:
      train, validation, test: the documents' texts.
      counts: `documents`, UTF-8 `bytes`, `unreadable` and `empty` records, over all splits.
      left_out: a message with number and names of unreadable or empty records; empty if none.
      fingerprint: 16 hexadecimal digits over every document's split, name and text.
      chats: whether each text is the document of a `chats.Chat`.
    """

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]
    counts: Mapping[str, int]
    left_out: str
    fingerprint: str
    chats: bool = False

    @classmethod
    def of(
        cls,
        splits: Mapping[str, Iterable[Text]],
        records: Sequence[TextRecords],
        *,
        chats: bool = False,
    ) -> "Documents":
        """Gathers the splits train, validation and test, and what `records` left out of them."""
        ordered = {
            split: sorted(splits[split], key=lambda item: (fraction(item.name), item))
            for split in SPLITS
        }
        texts = {split: tuple(item.text for item in ordered[split]) for split in SPLITS}
        unreadable = [name for record in records for name in record.unreadable]
        empty = [name for record in records for name in record.empty]
        messages, fault = [], "malformed" if chats else "no UTF-8 text"
        for kind, names in ((fault, unreadable), ("empty", empty)):
            shown = names[:_NAMES_SHOWN]
            if names[_NAMES_SHOWN:]:
                shown.append(f"{len(names) - _NAMES_SHOWN} more")
            if names:
                messages.append(f"{len(names)} {kind} ({', '.join(shown)})")
        counts = {
            "documents": sum(map(len, texts.values())),
            "bytes": sum(len(text.encode()) for split in texts.values() for text in split),
            "unreadable": len(unreadable),
            "empty": len(empty),
        }
        return cls(
            **texts,
            counts=counts,
            left_out="; ".join(messages),
            fingerprint=fingerprint(ordered),
            chats=chats,
        )


def read(records: Iterable[tuple[str, pathlib.Path | bytes]]) -> TextRecords:
    """Decodes records (name, file or bytes) as UTF-8, and lists by name those that are no text.

    Raises ValueError for a record of more than MOST_BYTES.
    """
    texts, unreadable, empty = [], [], []
    for name, content in records:
        is_bytes, text = isinstance(content, bytes), "\0"  # NUL is in no text
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if is_bytes or content.is_file():
                size = len(content) if is_bytes else content.stat().st_size
                if size > MOST_BYTES:
                    raise ValueError(
                        f"document {name} has {size:,} bytes, of at most {MOST_BYTES:,}; cut it "
                        "into more files or leave it out"
                    )
                text = (content if is_bytes else content.read_bytes()).decode()
        if "\0" in text:
            unreadable.append(name)
        elif text.strip():
            texts.append(Text(name, text))
        else:
            empty.append(name)
    return TextRecords(texts, sorted(unreadable), sorted(empty))


def split_by_hash(
    texts: Sequence[Text], held_out: Sequence[str] = ("validation", "test")
) -> dict[str, list[Text]]:
    """Puts a tenth of `texts` into each split of `held_out`, and the rest into train.

    A hash of the name alone decides. A split that a small corpus leaves empty gets one document of
    the largest split. Raises ValueError for fewer documents than splits.
    """
    if len(texts) <= len(held_out):
        raise ValueError(
            f"a corpus needs {len(held_out) + 1} documents for {', '.join(('train', *held_out))}, "
            f"got {len(texts)}; cut it into more files"
        )
    splits = {split: [] for split in ("train", *held_out)}
    for item in sorted(texts, key=lambda item: fraction(item.name)):
        splits[split_of(item.name, held_out)].append(item)
    for split in splits.values():
        if not split:
            split.append(max(splits.values(), key=len).pop())
    return splits


def split_of(name: str, held_out: Sequence[str]) -> str:
    """Returns the split of a record: by a hash of its name, a tenth go to each of `held_out`."""
    place = fraction(name)
    split = "test" if place >= 0.9 else "validation" if place >= 0.8 else "train"
    return split if split in held_out else "train"


def fraction(name: str) -> float:
    """Hashes `name` to a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode(errors=_ERRORS)).digest()[:4]) / 2**32


def fingerprint(splits: Mapping[str, Iterable[Text]]) -> str:
    """Returns 16 hexadecimal digits over every split, name and text, whatever their order."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        for name, text in sorted(splits[split]):
            for part in (split, name, text):
                digest.update(hashlib.sha256(part.encode(errors=_ERRORS)).digest())
    return digest.hexdigest()[:16]
