"""Documents in three splits, whatever their source."""

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
    """Texts, and the names of records that are no UTF-8 text or only white space."""

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
    """

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]
    counts: Mapping[str, int]
    left_out: str
    fingerprint: str

    @classmethod
    def of(
        cls, splits: Mapping[str, Iterable[Text]], records: Sequence[TextRecords]
    ) -> "Documents":
        """Gathers the splits train, validation and test, and what `records` left out of them."""
        ordered = {
            split: sorted(splits[split], key=lambda item: (fraction(item.name), item))
            for split in SPLITS
        }
        texts = {split: tuple(item.text for item in ordered[split]) for split in SPLITS}
        omitted = {
            "no UTF-8 text": sorted(name for record in records for name in record.unreadable),
            "empty": sorted(name for record in records for name in record.empty),
        }
        messages = []
        for kind, names in omitted.items():
            more = [f"{len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []
            if names:
                shown = ", ".join([*names[:_NAMES_SHOWN], *more])
                messages.append(f"{len(names)} {kind} ({shown})")
        counts = {
            "documents": sum(map(len, texts.values())),
            "bytes": sum(len(text.encode()) for split in texts.values() for text in split),
            "unreadable": len(omitted["no UTF-8 text"]),
            "empty": len(omitted["empty"]),
        }
        left_out = "; ".join(messages)
        return cls(**texts, counts=counts, left_out=left_out, fingerprint=fingerprint(ordered))


def read(records: Iterable[tuple[str, pathlib.Path | bytes]]) -> TextRecords:
    """Decodes records (name, file or bytes) as UTF-8, and lists by name those that are no text.

    Raises ValueError for a record of more than MOST_BYTES.
    """
    texts, unreadable, empty = [], [], []
    for name, content in records:
        is_bytes = isinstance(content, bytes)
        if not is_bytes and not content.is_file():
            unreadable.append(name)
            continue
        try:
            size = len(content) if is_bytes else content.stat().st_size
            if size > MOST_BYTES:
                raise ValueError(
                    f"document {name} has {size:,} bytes, of at most {MOST_BYTES:,}; cut it into "
                    "more files or leave it out"
                )
            text = (content if is_bytes else content.read_bytes()).decode()
        except (OSError, UnicodeDecodeError):
            text = "\0"
        if "\0" in text:  # NUL is in no text
            unreadable.append(name)
        elif text.strip():
            texts.append(Text(name, text))
        else:
            empty.append(name)
    return TextRecords(texts, unreadable, empty)


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
        place = fraction(item.name)
        split = "test" if place >= 0.9 else "validation" if place >= 0.8 else "train"
        splits[split if split in held_out else "train"].append(item)
    for split in splits.values():
        if not split:
            split.append(max(splits.values(), key=len).pop())
    return splits


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
