"""Rows of arrays in array_record shards: written once under checksums, then read in any order.

A folder holds named parts, each the first rows of an endless stream. Shard j of a part has the rows
from j times `shard_rows` on, so that a part can be made longer, and a lost shard made again.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int

from jaxdiv import files

MANIFEST = "manifest.json"
BFLOAT16 = "bfloat16"
_SHARD_BYTES, _MOST_SHARDS = 2**25, 256  # readers keep every shard open
_SUFFIX = ".array_record"
_CHECKED = ("bytes", "sha256")
Fields = Mapping[str, tuple[str, tuple[int, ...]]]  # type and shape of each array in a row


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows `start` to `start + rows` of a part."""

    part: str
    number: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.part}-{self.number:05d}{_SUFFIX}"


class RowCache:
    """Rows below one folder, as its manifest has them, or as the first write will make it.

    Attributes:
      folder: of this machine.
      identity: what decides the rows, by names for messages; empty before the first write.
      fields: the arrays of a row.
      batch_rows: rows that the maker writes at once, of which a shard has a multiple.
    """

    def __init__(self, folder: str | os.PathLike, fields: Fields, *, rows: int, batch_rows: int):
        """Opens the folder, or plans one of `rows` rows of `fields`.

        Raises ValueError if its manifest is none.
        """
        self.folder = pathlib.Path(folder)
        self.fields, self.batch_rows = dict(fields), batch_rows
        size = rows * self.dtype.itemsize // _MOST_SHARDS
        batches = max(size, _SHARD_BYTES) // (batch_rows * self.dtype.itemsize)
        self._shard_rows = batch_rows * max(batches, 1)
        self.identity: dict[str, Any] = {}
        self._shards: dict[str, dict[str, Any]] = {}
        if (self.folder / MANIFEST).exists():
            self._load()

    def _load(self) -> None:
        path = self.folder / MANIFEST
        manifest = files.read_json(path)
        try:
            fields = manifest["fields"].items()
            self.fields = {name: (kind, tuple(shape)) for name, (kind, shape) in fields}
            self.batch_rows, self._shard_rows = manifest["batch_rows"], manifest["shard_rows"]
            self.identity = dict(manifest["identity"])
            self._shards = {
                name: {"rows": int(entry["rows"]), **{key: entry[key] for key in _CHECKED}}
                for name, entry in manifest["shards"].items()
            }
            is_whole = self.dtype.itemsize > 0 and self._shard_rows % self.batch_rows == 0
        except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"{path} is no manifest of a cache; give another folder")

    @property
    def dtype(self) -> np.dtype:
        """The type of a row; bfloat16 is stored as its bits."""
        return np.dtype(
            [
                (name, "<u2" if kind == BFLOAT16 else kind, shape)
                for name, (kind, shape) in self.fields.items()
            ]
        )

    def check(self, identity: Mapping[str, Any], fields: Fields) -> None:
        """Raises ValueError, naming what differs, unless the rows fit.

        Args:
          identity: what decides them, or a part of that.
          fields: the arrays that are needed; the cache may have more.
        """
        for name, value in identity.items() if self.identity else ():
            if self.identity.get(name) != value:
                raise ValueError(
                    f"the cache in {self.folder} is of another {name}, {self.identity.get(name)} "
                    f"there and {value} here; give a folder of its own"
                )
        for name, field in fields.items():
            if self.fields.get(name) != field:
                raise ValueError(
                    f"the cache in {self.folder} lacks {name} of {field[0]}{list(field[1])}; it "
                    f"has {', '.join(self.fields)}; give a folder of its own"
                )

    def shards(self, rows: Mapping[str, int]) -> list[Shard]:
        """Returns the shards that hold the first `rows` of each part."""
        return [
            Shard(part, number, start, min(self._shard_rows, count - start))
            for part, count in rows.items()
            for number, start in enumerate(range(0, count, self._shard_rows))
        ]

    def missing(self, rows: Mapping[str, int]) -> dict[Shard, str]:
        """Returns the shards of `shards` that are to be made: each with a message on its damage, or
        an empty one if it was not made before."""
        faults = {shard: self._fault(shard) for shard in self.shards(rows)}
        return {shard: fault for shard, fault in faults.items() if fault is not None}

    def _fault(self, shard: Shard) -> str | None:
        entry, path = self._shards.get(shard.name), self.folder / shard.name
        if not entry or entry["rows"] < shard.rows:
            return ""
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{path} has {size} bytes, not {entry['bytes']} as it was written"
        if _digest(path) != entry["sha256"]:
            return f"{path} is not what was written, by its sha256"
        return None

    @contextlib.contextmanager
    def writing(
        self, shard: Shard, identity: Mapping[str, Any]
    ) -> Iterator[Callable[[Mapping[str, np.ndarray]], None]]:
        """Yields a function that appends arrays of rows; the shard counts if the block succeeds.

        Raises OSError, with the path, if it can't be written.
        """
        path = self.folder / shard.name
        for left_over in self.folder.glob(f".{shard.name}.*"):  # by a killed process
            left_over.unlink()
        with files.replacing(path) as temporary:
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")

            def add(arrays):
                rows = np.zeros(len(next(iter(arrays.values()))), self.dtype)
                for name in self.fields:
                    rows[name] = np.asarray(arrays[name]).view(rows[name].dtype)
                for row in rows:
                    writer.write(row.tobytes())

            try:
                yield add
            finally:
                try:
                    writer.close()
                except RuntimeError as error:  # such as a full disk
                    raise OSError(str(error)) from None
            size, digest = temporary.stat().st_size, _digest(temporary)
        self._shards[shard.name] = {"rows": shard.rows, "bytes": size, "sha256": digest}
        self.identity = dict(identity)
        sizes = {"batch_rows": self.batch_rows, "shard_rows": self._shard_rows}
        manifest = {"identity": self.identity, "fields": self.fields, **sizes}
        files.write_json(self.folder / MANIFEST, manifest | {"shards": self._shards})

    def reader(
        self, part: str, rows: int
    ) -> Callable[[Int[np.ndarray, " b"]], dict[str, np.ndarray]]:
        """Returns the function that reads some of the first `rows` of a part, by their numbers.

        It raises OSError if the shards are not what was written.
        """
        shards = self.shards({part: rows})
        source = grain.sources.ArrayRecordDataSource(
            [f"{self.folder / shard.name}[0:{shard.rows}]" for shard in shards]
        )

        def read(numbers):
            try:
                content = b"".join(source[int(number)] for number in numbers)
            except RuntimeError as error:
                raise OSError(f"the cache in {self.folder} can't be read: {error}") from None
            values = np.frombuffer(content, self.dtype)
            kinds = {name: kind for name, (kind, _) in self.fields.items()}
            return {
                name: values[name].view(ml_dtypes.bfloat16 if kind == BFLOAT16 else kind)
                for name, kind in kinds.items()
            }

        return read


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
