"""Folders of safetensors: tensors by name, read in blocks of rows as they are stored."""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdiv import files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_BLOCK = 2**25  # bytes that are read at once, more or less


class Tensors:
    """The tensors of a folder. Only headers are read until `blocks` reads a tensor by its name.

    Args:
      folder: with *.safetensors, and an index if there are several.
      ignore: ending of the names of tensors to leave out.

    Attributes:
      path: of the folder.
      files: paths of the files, in order.
      shapes, types: each tensor's shape and type, by name.

    Raises:
      ValueError: there is no file, one is damaged or missing, or a tensor appears twice or is of
        another type than float32, float16 or bfloat16.
    """

    def __init__(self, folder: str | os.PathLike, *, ignore: str):
        self.path = pathlib.Path(folder)
        self.files = _files(self.path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, np.dtype] = {}
        self._path_of: dict[str, pathlib.Path] = {}
        for path in self.files:
            try:
                with safe_open(path, framework="numpy") as file:
                    headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise ValueError(f"can't read {path}: {error}") from None
            for name, header in headers.items():
                if header.get_dtype() not in _TYPES:
                    raise ValueError(
                        f"{path}: {name} is {header.get_dtype()}; known: {', '.join(_TYPES)}"
                    )
                if name.endswith(ignore):
                    continue
                if name in self.shapes:
                    raise ValueError(
                        f"tensor {name} appears twice, in {self._path_of[name]} and in {path}"
                    )
                self._path_of[name], self.shapes[name] = path, tuple(header.get_shape())
                self.types[name] = np.dtype(_TYPES[header.get_dtype()])

    def blocks(self, name: str) -> Iterator[tuple[int, Float[np.ndarray, "rows ..."]]]:
        """Yields a tensor's rows block by block, each with the number of its first row."""
        shape = self.shapes[name]
        rows = max(1, _BLOCK // (self.types[name].itemsize * math.prod(shape[1:])))
        for start in range(0, shape[0], rows):
            # The pages of a file count as this process's memory until it is closed.
            with safe_open(self._path_of[name], framework="numpy") as file:
                block = file.get_slice(name)[start : min(start + rows, shape[0])]
            yield start, block

    def path_of(self, name: str) -> pathlib.Path:
        """Returns the file that holds a tensor."""
        return self._path_of[name]


def check_shapes(tensors: Any, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError for the first tensor that is missing, surplus or of another shape.

    `tensors` has `path`, `shapes` and `path_of` as `Tensors`.
    """
    for name, shape in expected.items():
        if name not in tensors.shapes:
            raise ValueError(
                f"{tensors.path} lacks the tensor {name} {list(shape)} that its config asks for"
            )
        if tensors.shapes[name] != shape:
            raise ValueError(
                f"{tensors.path_of(name)}: {name} is {list(tensors.shapes[name])}, not "
                f"{list(shape)} as its config has it"
            )
    for name in tensors.shapes:
        if name not in expected:
            raise ValueError(
                f"{tensors.path_of(name)} holds {name}, which the model of its config has no place "
                "for"
            )


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folder's files of safetensors: those of its index, or else all."""
    if (folder / INDEX).is_file():
        index = files.read_json(folder / INDEX)
        names = index.get("weight_map") if isinstance(index, dict) else None
        # A name with a folder in it could lead out of this one.
        if not isinstance(names, dict) or not all(
            isinstance(name, str) and pathlib.PurePath(name).name == name for name in names.values()
        ):
            raise ValueError(
                f"{folder / INDEX} must map tensors to files of its folder in `weight_map`"
            )
        paths = [folder / name for name in sorted(set(names.values()))]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(
            f"{folder} holds no *.safetensors; other formats can carry code and are not read"
        )
    return paths


def save(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `tensors` to one file of the folder."""
    # safetensors writes memory as it lies, whatever the strides.
    contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    # It makes private files; this one gets the mode of any new file.
    (folder / WEIGHTS).chmod(0o666 & ~files.umask())
