"""Arrays in npz files, written atomically and read without pickle."""

import dataclasses
import hashlib
import os

import numpy as np

from jaxdiv import files


class StoredArrays:
    """Base of frozen dataclasses of arrays, which have a `KIND` and raise ValueError for others.

    A field whose default is None may be absent.
    """

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all arrays."""
        content = b"".join(array.tobytes() for array in self._arrays().values())
        return hashlib.sha256(content).hexdigest()[:16]

    def save(self, path: str | os.PathLike) -> None:
        """Writes an npz file, atomically."""
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **self._arrays())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in vars(self).items() if array is not None}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "StoredArrays":
        """Reads a file that `save` wrote. Raises ValueError, naming the file, if it is another."""
        try:
            with files.path_of(path).open("rb") as file, np.load(file, allow_pickle=False) as npz:
                names = [
                    field.name
                    for field in dataclasses.fields(cls)
                    if field.default is not None or field.name in npz
                ]
                return cls(**{name: npz[name] for name in names})
        except Exception as error:  # zipfile, zlib and NumPy have many errors for a damaged file
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(f"can't read {cls.KIND} from {path}: {kind}{error}") from None
