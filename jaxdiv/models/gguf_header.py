"""The header of a GGUF file: its fields, and where its tensors lie.

The format is that of llama.cpp (docs/gguf.md of ggml), versions 2 and 3, little-endian. Every count
and size is checked against the file before it is used, so that a damaged header asks for no memory.
"""

import mmap
import os
import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np

_VERSIONS = (2, 3)
# The format's numbers of types, and NumPy's names of them.
_SCALARS = {
    **{0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
_SCALARS = {number: np.dtype(name) for number, name in _SCALARS.items()}
_UINT32, _STRING, _ARRAY, _UINT64 = 4, 8, 9, 10
_MOST_AXES = 4
_LENGTH = struct.Struct("<Q")


class TensorPlace(NamedTuple):
    """A tensor's place in the file.

    Attributes:
      shape: outputs first, as in NumPy.
      type: the number of its type in GGML.
      start: from the beginning of the file.
    """

    shape: tuple[int, ...]
    type: int
    start: int


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
    """Returns a file's fields and tensors by name.

    Raises ValueError, naming the file, if it is another, is cut off in its header or has a name
    twice.
    """
    try:
        with pathlib.Path(path).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with data:
            return _parse(_Cursor(data))
    except (OSError, ValueError) as error:
        raise ValueError(f"can't read {path} as a GGUF file: {error}") from None


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def skip(self, size: int) -> int:
        """Goes on by `size` bytes, and returns where they begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise ValueError(f"its header is cut off, or damaged at byte {start:,}")
        return start

    def scalars(self, kind: int, count: int) -> list[Any]:
        dtype = _SCALARS[kind]
        start = self.skip(count * dtype.itemsize)
        # A copy, as the file can't be closed while an array refers to it.
        return np.frombuffer(self.data[start : self.at], dtype).tolist()

    def scalar(self, kind: int) -> Any:
        return self.scalars(kind, 1)[0]

    def text(self) -> str:
        (size,) = _LENGTH.unpack_from(self.data, self.skip(8))
        start = self.skip(size)
        return self.data[start : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(kind)
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"byte {self.at:,} has a field of the unknown type {kind}")
        kind, count = self.scalar(_UINT32), self.scalar(_UINT64)
        if kind in _SCALARS:
            return self.scalars(kind, count)
        if kind != _STRING:
            raise ValueError(f"byte {self.at:,} has an array of the unknown type {kind}")
        return [self.text() for _ in range(count)]


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, TensorPlace]]:
    if cursor.data[cursor.skip(4) : 4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.scalar(_UINT32)
    if version not in _VERSIONS:
        raise ValueError(f"it is of version {version}, or big-endian; known: 2 and 3")
    tensor_count, field_count = cursor.scalars(_UINT64, 2)
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        name = cursor.text()
        if name in fields:
            raise ValueError(f"the field {name} appears twice")
        fields[name] = cursor.value(cursor.scalar(_UINT32))
    entries: dict[str, TensorPlace] = {}
    for _ in range(tensor_count):
        name, axes = cursor.text(), cursor.scalar(_UINT32)
        if name in entries or axes > _MOST_AXES:
            fault = "appears twice" if name in entries else f"has {axes} axes"
            raise ValueError(f"the tensor {name} {fault}")
        shape = tuple(reversed(cursor.scalars(_UINT64, axes)))
        entries[name] = TensorPlace(shape, cursor.scalar(_UINT32), cursor.scalar(_UINT64))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"`general.alignment` must be a whole number above 0, is {alignment!r}")
    # Tensors' places count from the end of the header.
    base = -(-cursor.at // alignment) * alignment
    return fields, {name: x._replace(start=base + x.start) for name, x in entries.items()}
