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
            path = _mark_bucket(folder) if files.in_bucket(folder) else _lock(folder, stack)
            stack.callback(path.unlink, missing_ok=True)  # before the lock's release
        except OSError as error:
            raise OSError(
                f"work folder {folder} can't be written to: {error.strerror or error}"
            ) from None
        yield


def _lock(folder: pathlib.Path, stack: contextlib.ExitStack) -> pathlib.Path:
    """Locks a folder until `stack` is closed, and returns the file that names this process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    try:
        stack.enter_context(filelock.FileLock(path, timeout=0, fallback_to_soft=False))
    except filelock.Timeout:
        raise ValueError(
            f"work folder {folder} is in use by {_holder(path)[0]}; wait for it or stop it"
        ) from None
    holder, host = _holder(path)
    if host not in (None, socket.gethostname()):
        # This happens after a machine was taken away. A file system without locks between hosts
        # would look alike.
        progress.log(
            f"work folder {folder} was in use by {holder}, which no longer holds it: continuing "
            "here"
        )
    path.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
    return path


def _mark_bucket(folder: pathlib.PurePath) -> pathlib.PurePath:
    """Warns of other runs in a bucket, and returns the file that names this process."""
    path = folder / NAME
    progress.log(
        f"work folder {folder} is in a bucket, which has no locks: make sure that no second run "
        "writes there"
    )
    if path.exists():
        progress.log(f"{path} names {_holder(path)[0]}, which was killed or still writes there")
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    process = {"host": socket.gethostname(), "process": os.getpid(), "time": time}
    files.write_json(path, process)
    return path


def _holder(path: pathlib.PurePath) -> tuple[str, str | None]:
    """Returns the holder that a lock file names, for messages, and its host; None if no host."""
    try:
        with path.open("rb") as file:
            holder = json.loads(file.read(_MAX_BYTES))
        since = f" since {holder['time']}" if "time" in holder else ""
        return f"process {holder['process']} on {holder['host']}{since}", str(holder["host"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return "another process", None  # which may have ended since
