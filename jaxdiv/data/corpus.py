"""Documents in three splits, wherever they come from."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SPLITS = ("train", "validation", "test")


class Text(NamedTuple):
    name: str
    text: str


class Reading(NamedTuple):
    """Texts, and how many records could not be decoded or held nothing but white space."""

    texts: list[Text]
    unreadable: int
    empty: int


@dataclasses.dataclass(frozen=True)
class Documents:
    """A corpus. Each split is in the order of a hash, so that its first K documents are a fair sample.

    Attributes:
      train, validation, test: the documents' texts.
      counts: `documents`, UTF-8 `bytes`, `unreadable` and `empty` records, over all splits.
      fingerprint: 16 hexadecimal digits over every document's split, name and text.
    """

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]
    counts: Mapping[str, int]
    fingerprint: str

    @classmethod
    def of(cls, splits: Mapping[str, Iterable[Text]], *, unreadable: int, empty: int) -> "Documents":
        """Gathers `splits` (each of train, validation and test) with what reading them left out."""
        ordered = {split: sorted(splits[split], key=lambda item: (fraction(item.name), item)) for split in SPLITS}
        texts = {split: tuple(item.text for item in ordered[split]) for split in SPLITS}
        counts = {
            "documents": sum(map(len, texts.values())),
            "bytes": sum(len(text.encode()) for split in texts.values() for text in split),
            "unreadable": unreadable,
            "empty": empty,
        }
        return cls(**texts, counts=counts, fingerprint=fingerprint(ordered))


def read(records: Iterable[tuple[str, pathlib.Path | bytes]]) -> Reading:
    """Decodes (name, file or bytes) as UTF-8; what can't be read, or is empty, is counted and left out."""
    texts, unreadable, empty = [], 0, 0
    for name, content in records:
        try:
            text = (content if isinstance(content, bytes) else content.read_bytes()).decode()
        except (OSError, UnicodeDecodeError):
            unreadable += 1
            continue
        if text.strip():
            texts.append(Text(name, text))
        else:
            empty += 1
    return Reading(texts, unreadable, empty)


def split_by_hash(texts: Sequence[Text], held_out: Sequence[str] = ("validation", "test")) -> dict[str, list[Text]]:
    """Keeps a tenth of `texts`, chosen by a hash of the name alone, for each split in `held_out`; rest: train.

    A split that a small corpus leaves empty gets one document of the largest split. Raises ValueError for
    fewer documents than splits.
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
