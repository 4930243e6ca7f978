"""A lock on a run's folder, so that two runs never write to it at once."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock

from jaxdiv import files
from jaxdiv.runs import processes, progress

NAME = "lock.json"
_MAX_BYTES = 4096  # read of a lock file, which anybody may have written


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
    """Creates `folder` if needed and locks it for the block.

    The lock is the operating system's, so it ends with the process, even a killed one. Its file
    names host and process for people. Of several processes the first holds the lock for all. A
    bucket has no locks: a second run is only warned about.

    Raises:
      ValueError: another run holds the lock; the message names its host and process.
      OSError: the folder can't be created or written to.
    """
    folder = files.path_of(folder)
    if not processes.is_first():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context((_mark_bucket if files.in_bucket(folder) else _lock)(folder))
        except OSError as error:
            raise OSError(
                f"work folder {folder} can't be written to: {error.strerror or error}"
            ) from None
        yield


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME

    def write_holder(file: int) -> None:
        holder, host = _holder(os.pread(file, _MAX_BYTES, 0))
        if host not in (None, socket.gethostname()):
            # This happens after a machine was taken away. A file system without locks between
            # hosts would look alike.
            progress.log(
                f"work folder {folder} was in use by {holder}, which no longer holds it: "
                "continuing here"
            )
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_this_process()).encode(), 0)

    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False, on_acquired=write_holder)
    try:
        lock.acquire()
    except filelock.Timeout:
        content = b""
        with contextlib.suppress(FileNotFoundError):  # the holder has ended since
            content = path.read_bytes()[:_MAX_BYTES]
        holder, _ = _holder(content)
        raise ValueError(
            f"work folder {folder} is in use by {holder}; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _mark_bucket(folder: pathlib.PurePath) -> Iterator[None]:
    path = folder / NAME
    progress.log(
        f"work folder {folder} is in a bucket, which has no locks: make sure that no second run "
        "writes there"
    )
    if path.exists():
        progress.log(
            f"{path} names {_holder(path.read_bytes())[0]}, which was killed or still writes there"
        )
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    files.write_json(path, {**_this_process(), "time": time})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _this_process():
    return {"host": socket.gethostname(), "process": os.getpid()}


def _holder(content: bytes) -> tuple[str, str | None]:
    """Returns the holder that a lock file names, for messages, and its host; None if no host."""
    try:
        holder = json.loads(content)
        since = f" since {holder['time']}" if "time" in holder else ""
        return f"process {holder['process']} on {holder['host']}{since}", str(holder["host"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process", None
