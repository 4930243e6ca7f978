"""Arrays in npz files, written atomically and read without pickle."""

import os

import numpy as np

from jaxdiv import files


def save(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Writes `arrays` by their names."""
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load(path: str | os.PathLike, kind: str, *names: str) -> list[np.ndarray]:
    """Reads the arrays of these names. Raises ValueError, naming file and `kind`, if it can't."""
    try:
        with files.path_of(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # zipfile, zlib and NumPy have many errors for a damaged file
        raise ValueError(
            f"can't read {kind} from {path}: {type(error).__name__}: {error}"
        ) from None
