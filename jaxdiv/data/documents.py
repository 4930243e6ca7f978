"""Documents in three splits, wherever they come from."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SPLITS = ("train", "validation", "test")
MOST_BYTES = 2**22  # of a document: tokenizing one takes some 300 times its size
_NAMED = 5  # of what is left out


class Text(NamedTuple):
    name: str
    text: str


class TextRecords(NamedTuple):
    """Texts, and the names of records that are no UTF-8 text or hold nothing but white space."""

    texts: list[Text]
    unreadable: list[str]
    empty: list[str]


@dataclasses.dataclass(frozen=True)
class Documents:
    """A corpus. Each split is in the order of a hash, so that its first K documents are a fair
    sample.

    Attributes:
      train, validation, test: the documents' texts.
      counts: `documents`, UTF-8 `bytes`, `unreadable` and `empty` records, over all splits.
      left_out: how many records were unreadable or empty, with names, for people; empty if none
        were.
      fingerprint: 16 hexadecimal digits over every document's split, name and text.
    """

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]
    counts: Mapping[str, int]
    left_out: str
    fingerprint: str

    @classmethod
    def of(
        cls, splits: Mapping[str, Iterable[Text]], readings: Iterable[TextRecords]
    ) -> "Documents":
        """Gathers `splits` (each of train, validation and test) with what `readings` left out."""
        unreadable, empty = (
            [name for r in readings for name in getattr(r, kind)]
            for kind in ("unreadable", "empty")
        )
        ordered = {
            split: sorted(splits[split], key=lambda item: (fraction(item.name), item))
            for split in SPLITS
        }
        texts = {split: tuple(item.text for item in ordered[split]) for split in SPLITS}
        counts = {
            "documents": sum(map(len, texts.values())),
            "bytes": sum(len(text.encode()) for split in texts.values() for text in split),
            "unreadable": len(unreadable),
            "empty": len(empty),
        }
        left_out = [
            _named(len(unreadable), "no UTF-8 text", unreadable),
            _named(len(empty), "empty", empty),
        ]
        return cls(
            **texts,
            counts=counts,
            left_out="; ".join(filter(None, left_out)),
            fingerprint=fingerprint(ordered),
        )


def _named(count, kind, names):
    more = [f"{count - _NAMED} more"] if count > _NAMED else []
    return f"{count} {kind} ({', '.join([*sorted(names)[:_NAMED], *more])})" if count else ""


def read(records: Iterable[tuple[str, pathlib.Path | bytes]]) -> TextRecords:
    """Decodes (name, file or bytes) as UTF-8; what is no text (NUL is in none), or is empty, is
    left out by name.

    Raises ValueError for more than MOST_BYTES in one.
    """
    reading = TextRecords([], [], [])
    for name, content in records:
        try:
            text = _content(name, content).decode()
        except (OSError, UnicodeDecodeError):
            text = None
        if text is None or "\0" in text:
            reading.unreadable.append(name)
        elif text.strip():
            reading.texts.append(Text(name, text))
        else:
            reading.empty.append(name)
    return reading


def _content(name, content):
    if not isinstance(content, bytes) and not content.is_file():
        raise OSError(f"{name} is no file")
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(
            f"document {name} has {size:,} bytes, of at most {MOST_BYTES:,}; cut it into more files or leave it out"
        )
    return content if isinstance(content, bytes) else content.read_bytes()


def split_by_hash(
    texts: Sequence[Text], held_out: Sequence[str] = ("validation", "test")
) -> dict[str, list[Text]]:
    """Keeps a tenth of `texts`, chosen by a hash of the name alone, for each split in `held_out`;
    rest: train.

    A split that a small corpus leaves empty gets one document of the largest split. Raises
    ValueError for fewer documents than splits.
    """
    if len(texts) <= len(held_out):
        raise ValueError(
            f"a corpus needs {len(held_out) + 1} documents for {', '.join(('train', *held_out))}, "
            f"got {len(texts)}; cut it into more files"
        )
    splits = {split: [] for split in ("train", *held_out)}
    for item in sorted(texts, key=lambda item: fraction(item.name)):
        place = fraction(item.name)
        split = "test" if place >= 0.9 else "validation" if place >= 0.8 else "train"
        splits[split if split in held_out else "train"].append(item)
    for split in splits.values():
        if not split:
            split.append(max(splits.values(), key=len).pop())
    return splits


def fraction(name: str) -> float:
    """A number in [0, 1), the same for `name` on every machine."""
    return int.from_bytes(hashlib.sha256(_encode(name)).digest()[:4]) / 2**32


def fingerprint(splits: Mapping[str, Iterable[Text]]) -> str:
    """16 hexadecimal digits over every split, name and text, whatever their order."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        for name, text in sorted(splits[split]):
            for part in (split, name, text):
                digest.update(hashlib.sha256(_encode(part)).digest())
    return digest.hexdigest()[:16]


def _encode(text):
    # File names that are not UTF-8 carry surrogates.
    return text.encode(errors="surrogateescape")
