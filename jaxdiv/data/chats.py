"""Chats from JSON lines and Parquet files, each as a document.

A line or a row holds `messages`, or `prompt` and `completion`, or `text`. Its document is the JSON
of a `Chat`, whose hash decides the split, so that equal ones share one.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxdiv.data.documents import MOST_BYTES, Text, TextRecords

LINES, PARQUET = ".jsonl", ".parquet"
ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool")
_KEYS = ("messages", "prompt", "completion", "text")


class Chat(NamedTuple):
    """A conversation, or plain text with what stands before it.

    Attributes:
      messages: (role, content) in their order.
      first: messages of the assistant from this one on are labels.
      templated: whether a chat template renders it; else the contents stand one after the other.
    """

    messages: list[tuple[str, str]]
    first: int
    templated: bool

    @classmethod
    def parse(cls, record: Any) -> "Chat":
        """Reads an object of a file. Raises ValueError, which says what is wrong with it."""
        if not isinstance(record, dict):
            raise ValueError(f"a line must be an object, is a {type(record).__name__}")
        record = {key: value for key, value in record.items() if value is not None}
        if "messages" in record:
            return cls(_messages(record, "messages"), 0, True)
        if "prompt" in record and "completion" in record:
            pair = [record["prompt"], record["completion"]]
            if all(isinstance(part, str) for part in pair):
                return cls(list(zip(("user", ASSISTANT), pair, strict=True)), 1, False)
            before = _messages(record, "prompt")
            return cls(before + _messages(record, "completion"), len(before), True)
        if not isinstance(text := record.get("text"), str):
            raise ValueError("it needs `messages`, or `prompt` and `completion`, or `text`")
        return cls([(ASSISTANT, text)], 0, False)

    @classmethod
    def from_document(cls, document: str) -> "Chat":
        """Returns the chat of a document."""
        return cls(*json.loads(document))

    def document(self) -> str:
        """Returns its document. Raises ValueError for what is no text, or too long."""
        document = json.dumps(self, ensure_ascii=False)
        size = len(document.encode())  # raises UnicodeEncodeError for half a character
        if "\\u0000" in document and any("\0" in content for _, content in self.messages):
            raise ValueError("a content holds the character NUL")
        if size > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, of at most {MOST_BYTES:,}")
        return document

    @property
    def is_empty(self) -> bool:
        """True if no content has more than white space."""
        return not any(content.strip() for _, content in self.messages)


def _messages(record: dict, key: str) -> list[tuple[str, str]]:
    if not isinstance(record[key], list) or not all(isinstance(m, dict) for m in record[key]):
        raise ValueError(f"`{key}` must be a list of objects with a role and a content")
    for message in record[key]:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"a role must be one of {', '.join(ROLES)}, is {str(role)[:40]!r}")
        if not isinstance(content, str):
            raise ValueError(f"a content must be a string, is a {type(content).__name__}")
        if message.get("tool_calls"):
            raise ValueError("tool calls are not read")
    return [(message["role"], message["content"]) for message in record[key]]


def read(paths: Iterable[pathlib.Path], parent: pathlib.Path) -> TextRecords:
    """Reads all chats of files, and lists malformed and empty ones as FILE:LINE.

    Args:
      paths: of files with a suffix of `LINES` or `PARQUET`.
      parent: names of files are relative to it.

    Raises:
      ValueError: a Parquet file can't be read, or pyarrow is not installed.
    """
    texts, malformed, empty = [], [], []
    for path in paths:
        rows = _lines(path) if path.suffix == LINES else _rows(path)
        for number, row in rows:
            place = f"{path.relative_to(parent).as_posix()}:{number}"
            try:
                chat = Chat.parse(json.loads(row) if isinstance(row, bytes) else row)
                document = chat.document()
            except json.JSONDecodeError as error:
                malformed.append(f"{place}: no JSON, {error.msg} at character {error.pos}")
            except (ValueError, RecursionError) as error:
                malformed.append(f"{place}: {error}")
            else:
                if chat.is_empty:
                    empty.append(place)
                else:
                    name = hashlib.sha256(document.encode()).hexdigest()
                    texts.append(Text(name, document))
    return TextRecords(texts, malformed, empty)


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet is read by pyarrow; pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
        columns = [name for name in _KEYS if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns or None):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} can't be read as Parquet: {error}") from None
