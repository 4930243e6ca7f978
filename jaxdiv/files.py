"""Files and folders that are either whole or not there, on this machine or in a bucket.

A path is a pathlib.Path, or in a bucket an epath.Path, of which the house uses what both have;
`path_of` makes either.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_BUCKET = "gs://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether `path` is not of this machine."""
    return os.fspath(path).startswith(_BUCKET)


def path_of(given: str | os.PathLike) -> pathlib.PurePath:
    """The path that `given` names, which may be `gs://BUCKET/FOLDER`.

    Raises ValueError for any other scheme, and where no package is there that reaches a bucket.
    """
    if in_bucket(given):
        return _epath().Path(given)
    if scheme := _SCHEME.match(os.fspath(given)):
        raise ValueError(
            f"{given}: {scheme[0]} is not known; give a folder of this machine, or {_BUCKET}BUCKET/FOLDER"
        )
    return pathlib.Path(given)


@functools.cache
def _epath() -> ModuleType:
    """Looked for where it is needed: losses alone, without training, do without it."""
    import fsspec
    from etils import epath

    if importlib.util.find_spec("tensorflow") is None:  # which epath takes where it is there
        try:
            fsspec.get_filesystem_class("gcs")
        except ImportError:
            raise ValueError(
                f"{_BUCKET} needs a package that is not there: pip install gcsfs"
            ) from None
        # What it remembers of a folder lacks what Orbax writes there on its own way.
        fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath


def check_reachable(path: pathlib.PurePath) -> None:
    """Raises OSError, which names `path`, if it is in a bucket that can't be reached."""
    if in_bucket(path):
        with _naming_errors(f"{path} can't be reached"):
            path.exists()


@contextlib.contextmanager
def _naming_errors(what):
    """Buckets have errors of several libraries, few of which are OSErrors."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{what}: {type(error).__name__}: {error}") from error


def below(folder: pathlib.PurePath) -> dict[str, pathlib.PurePath]:
    """All files below `folder` by their names from there, with `/` between."""
    paths = (
        _walk(folder)
        if in_bucket(folder)
        else (path for path in folder.rglob("*") if path.is_file())
    )
    return {path.relative_to(folder).as_posix(): path for path in paths}


def empty(folder: pathlib.PurePath) -> None:
    """Removes every file below `folder`, of which nothing stays then in a bucket."""
    for path in below(folder).values():
        path.unlink(missing_ok=True)


def _walk(folder):
    for path in folder.iterdir() if folder.exists() else ():
        if path == folder:  # an empty object that stands for it
            continue
        yield from _walk(path) if path.is_dir() else [path]


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path of this machine that takes the place of `path` when the block ends
    without an error.

    Raises OSError, which names `path`, if it can't be written.
    """
    path = path_of(path)
    if in_bucket(path):
        yield from _sending(path)
        return
    try:
        yield from _replacing(path)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from error


def _replacing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        # mkstemp's files are private; the one that stays gets what any new file would.
        os.chmod(name, 0o666 & ~umask())
        yield pathlib.Path(name)
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _sending(path):
    with tempfile.TemporaryDirectory() as folder:
        temporary = pathlib.Path(folder, path.name)
        yield temporary
        _send(temporary, path)


def _send(file, path):
    """An object is there as a whole or not at all."""
    with _naming_errors(f"{path} can't be written"):
        path.write_bytes(file.read_bytes())


class Mirror:
    """A folder of this machine in which files may grow, for one in a bucket, where they can't; else
    that folder itself.

    Attributes:
      local: where to write.
    """

    def __init__(self, folder: pathlib.PurePath):
        self._folder = folder
        self._temporary = tempfile.TemporaryDirectory() if in_bucket(folder) else None
        self._sent: dict[str, tuple[int, int]] = {}
        self.local = pathlib.Path(self._temporary.name) if self._temporary else folder

    def fetch(self) -> None:
        """Brings what lies in the bucket."""
        if self._temporary:
            for name, path in below(self._folder).items():
                file = self.local / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(path.read_bytes())
                self._sent[name] = _state(file)

    def send(self) -> None:
        """Brings to the bucket every file that has changed, as a whole. Raises OSError if that
        fails."""
        for name, file in below(self.local).items() if self._temporary else ():
            if self._sent.get(name) != (state := _state(file)):
                _send(file, self._folder / name)
                self._sent[name] = state

    def close(self) -> None:
        if self._temporary:
            self._temporary.cleanup()


def _state(file):
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def mirrored(folder: pathlib.PurePath) -> Iterator[Mirror]:
    """Yields a mirror that has what lies in `folder`, where the block's end, also by an error,
    brings what changed."""
    with contextlib.closing(Mirror(folder)) as mirror:
        mirror.fetch()
        try:
            yield mirror
        except BaseException:
            with contextlib.suppress(OSError):
                mirror.send()
            raise
        mirror.send()


@contextlib.contextmanager
def making_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `path` that becomes `path` when the block ends without an
    error.

    Raises ValueError before anything is made if `path` is there and no empty folder, or in a
    bucket.
    """
    if in_bucket(path):
        raise ValueError(f"{path} is in a bucket; give a folder of this machine")
    path = pathlib.Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is there already and not an empty folder; give another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o777 & ~umask())
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def umask() -> int:
    """The rights that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike, text: str) -> None:
    r"""Writes `text` as UTF-8; of file names that are not UTF-8 the bytes stay, as JSON reads them:
    \udcff."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with a newline at its end."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Raises ValueError that names the file if it is not JSON."""
    try:
        return json.loads(path_of(path).read_bytes().decode())
    except (ValueError, RecursionError) as error:  # numbers can be too long, and lists too deep
        raise ValueError(f"{path} is not JSON: {error}") from None
