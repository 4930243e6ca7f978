"""Folders of safetensors: tensors by name, read one at a time as float32."""

import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdiv import files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = ("F32", "F16", "BF16")


class Tensors:
    """What the safetensors of a folder hold; only their headers are read until a tensor is asked
    for.

    Args:
      folder: where they lie.
      ignore: tensors whose names end so are left out.

    Attributes:
      files: the paths of those that count, in order.
      shapes: each tensor's, by name.

    Raises:
      ValueError: there are none, one is damaged or missing, or a tensor stands twice or is of
        another type than float32, float16 or bfloat16.
    """

    def __init__(self, folder: str | os.PathLike, *, ignore: str):
        self.files = _files(pathlib.Path(folder))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._in = {}
        for path in self.files:
            for name, shape in _headers(path):
                if name.endswith(ignore):
                    continue
                if name in self._in:
                    raise ValueError(
                        f"tensor {name} stands twice, in {self._in[name]} and in {path}"
                    )
                self._in[name], self.shapes[name] = path, shape

    def __getitem__(self, name: str) -> Float32[np.ndarray, "..."]:
        with safe_open(self._in[name], framework="numpy") as file:
            return file.get_tensor(name).astype(np.float32)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError for the first tensor that is missing, surplus or of another shape than
        `expected`."""
        where = self.files[0].parent
        for name, shape in expected.items():
            if name not in self.shapes:
                raise ValueError(
                    f"{where} lacks the tensor {name} {list(shape)} that its config.json asks for"
                )
            if self.shapes[name] != tuple(shape):
                raise ValueError(
                    f"{self._in[name]}: {name} is {list(self.shapes[name])}, not {list(shape)} as config.json has it"
                )
        for name in self.shapes:
            if name not in expected:
                raise ValueError(
                    f"{self._in[name]} holds {name}, which the model of config.json has no place for"
                )


def save(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `tensors` to the folder's one file."""
    # safetensors writes the memory as it lies, whatever the strides say.
    whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    # It makes private files; this one gets what any new file would.
    (folder / WEIGHTS).chmod(0o666 & ~files.umask())


def _files(folder):
    if (folder / INDEX).is_file():
        index = files.read_json(folder / INDEX)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not all(_plain(name) for name in names.values()):
            raise ValueError(
                f"{folder / INDEX} must map tensors to files of its folder in `weight_map`"
            )
        found = [folder / name for name in sorted(set(names.values()))]
    else:
        found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ValueError(
            f"{folder} holds no *.safetensors; other formats can carry code and are not read"
        )
    return found


def _plain(name):
    return isinstance(name, str) and pathlib.PurePath(name).name == name


def _headers(path) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() not in _TYPES:
                    raise ValueError(
                        f"{path}: {name} is {part.get_dtype()}; known: {', '.join(_TYPES)}"
                    )
                yield name, tuple(part.get_shape())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"can't read {path}: {error}") from None
