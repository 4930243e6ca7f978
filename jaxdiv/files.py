"""Files and folders that are written whole or not at all, on this machine or in a bucket.

A path is a pathlib.Path, or in a bucket an epath.Path; the project uses the methods that both have.
`path_of` makes either.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_BUCKET = "gs://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def in_bucket(path: str | os.PathLike) -> bool:
    """Returns whether `path` lies in a bucket, not on this machine."""
    return os.fspath(path).startswith(_BUCKET)


def path_of(name: str | os.PathLike) -> pathlib.PurePath:
    """Returns the path of a name, which may be `gs://BUCKET/FOLDER`.

    Raises:
      ValueError: for any other scheme, and if no installed package reaches a bucket.
    """
    if in_bucket(name):
        return _epath().Path(name)
    if scheme := _SCHEME.match(os.fspath(name)):
        raise ValueError(
            f"{name}: {scheme[0]} is not known; give a folder of this machine, or "
            f"{_BUCKET}BUCKET/FOLDER"
        )
    return pathlib.Path(name)


@functools.cache
def _epath() -> ModuleType:
    """Imports epath on demand: the losses alone do without it."""
    import fsspec
    from etils import epath

    if importlib.util.find_spec("tensorflow") is None:  # epath prefers tensorflow's file system
        try:
            fsspec.get_filesystem_class("gcs")
        except ImportError:
            raise ValueError(
                f"{_BUCKET} needs a package that is not there: pip install gcsfs"
            ) from None
        # Orbax writes around gcsfs, whose cached listings would lack those files.
        fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath


def user_cache() -> pathlib.Path | None:
    """Returns the user's folder of what can be made again; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "jaxdiv" if os.path.isabs(base) else None


def check_reachable(path: pathlib.PurePath) -> None:
    """Raises OSError, with the path, if it is in a bucket that can't be reached."""
    if in_bucket(path):
        with _as_os_error(f"{path} can't be reached"):
            path.exists()


@contextlib.contextmanager
def _as_os_error(message):
    """Turns the errors of bucket libraries, few of which are OSErrors, into OSErrors."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{message}: {type(error).__name__}: {error}") from error


def below(folder: pathlib.PurePath) -> dict[str, pathlib.PurePath]:
    """Returns all files below `folder` by their relative POSIX names."""
    if in_bucket(folder):
        paths = _walk(folder)
    else:
        paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def empty(folder: pathlib.PurePath) -> None:
    """Removes every file below `folder`; an empty folder of a bucket does not exist."""
    for path in below(folder).values():
        path.unlink(missing_ok=True)


def _walk(folder):
    for path in folder.iterdir() if folder.exists() else ():
        if path == folder:  # an empty object that stands for the folder
            continue
        yield from _walk(path) if path.is_dir() else [path]


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path of this machine that replaces `path` if the block ends without error.

    Raises:
      OSError: with the path, if it can't be written.
    """
    path = path_of(path)
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder, path.name)
            yield temporary
            _send(temporary, path)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from error


def _beside(path):
    """Returns the path of a hidden file or folder; tempfile's would be private to the user."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")


def _send(file, path):
    """Writes an object of a bucket, which exists as a whole or not at all."""
    with _as_os_error(f"{path} can't be written"):
        path.write_bytes(file.read_bytes())


class BucketCache:
    """A folder of this machine in which files may grow, for a folder in a bucket, where they can't.

    A folder of this machine is its own cache.

    Attributes:
      local: the folder to write to.
    """

    def __init__(self, folder: pathlib.PurePath):
        self._folder = folder
        self._temporary = tempfile.TemporaryDirectory() if in_bucket(folder) else None
        self._sent: dict[str, tuple[int, int]] = {}
        self.local = pathlib.Path(self._temporary.name) if self._temporary else folder

    def fetch(self) -> None:
        """Copies the bucket's folder here."""
        if self._temporary:
            for name, path in below(self._folder).items():
                file = self.local / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(path.read_bytes())
                self._sent[name] = _state(file)

    def send(self) -> None:
        """Copies every file that has changed to the bucket. Raises OSError if that fails."""
        for name, file in below(self.local).items() if self._temporary else ():
            if self._sent.get(name) != (state := _state(file)):
                _send(file, self._folder / name)
                self._sent[name] = state

    def close(self) -> None:
        if self._temporary:
            self._temporary.cleanup()


def _state(file):
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def cached(folder: pathlib.PurePath) -> Iterator[BucketCache]:
    """Yields a cache with the files of `folder`; sends changes at the end, even after an error."""
    with contextlib.closing(BucketCache(folder)) as cache:
        cache.fetch()
        try:
            yield cache
        except BaseException:
            with contextlib.suppress(OSError):
                cache.send()
            raise
        cache.send()


@contextlib.contextmanager
def making_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that becomes `path` if the block ends without error.

    Raises:
      ValueError: before the block, if `path` is in a bucket, or exists and is no empty folder.
    """
    if in_bucket(path):
        raise ValueError(f"{path} is in a bucket; give a folder of this machine")
    path = pathlib.Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is there already and not an empty folder; give another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def umask() -> int:
    """Returns the process's umask, the permissions that new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike, text: str) -> None:
    r"""Writes `text` as UTF-8; undecodable bytes of file names become escapes such as \udcff."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with a newline at its end."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON. Raises ValueError, with the path, if the file is none."""
    try:
        return json.loads(path_of(path).read_bytes().decode())
    except (ValueError, RecursionError) as error:  # numbers may be too long, lists too deep
        raise ValueError(f"{path} is not JSON: {error}") from None
