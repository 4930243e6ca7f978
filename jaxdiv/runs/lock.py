"""A lock on a run's folder, so that two runs never write to it at once."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator

from jaxdiv import files
from jaxdiv.runs import processes, progress

NAME = "lock.json"


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
    """Makes `folder` if need be and holds it, alone, for the block.

    The system ends the lock with the process, even one that is killed, and what that one left of
    itself is taken over, which is said where it ran on another host. The lock's file names host and
    process for people. Of several processes the first holds it for all. A bucket refuses nobody,
    which is said.

    Raises:
      ValueError: another run holds it; it is named.
      OSError: the folder can't be made or written to.
    """
    folder = files.path_of(folder)
    if not processes.is_first():
        yield
        return
    try:
        release = _name(folder) if files.in_bucket(folder) else _lock_folder(folder)
    except OSError as error:
        raise OSError(
            f"work folder {folder} can't be written to: {error.strerror or error}"
        ) from None
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        release()


def _name(folder):
    """A bucket has no locks: this process is named there, and the one that was is told."""
    path = folder / NAME
    progress.log(
        f"work folder {folder} is in a bucket, which keeps no second run out: see to it that there is none"
    )
    if path.exists():
        progress.log(
            f"{path} names {_named(path.read_bytes())[0]}, which was killed or still writes there"
        )
    files.write_json(
        path, {**_own(), "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    )
    return lambda: None


def _lock_folder(folder):
    """Locks the folder; gives what ends that."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(folder)
    return lambda: os.close(file)


def _locked(folder):
    """The open file once it is locked and names this process."""
    path = folder / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, file)
            _lock(folder, file)
            # What its holder has removed in the meantime is no lock any more.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                _take(folder, file)
                closing.pop_all()
                return file


def _lock(folder, file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder, _ = _named(_content(file))
        raise ValueError(
            f"work folder {folder} is in use by {holder}; wait for it or stop it"
        ) from None


def _take(folder, file):
    words, host = _named(_content(file))
    if host not in (None, socket.gethostname()):
        # As after a machine that was taken away; a file system without locks between hosts would
        # look alike.
        progress.log(
            f"work folder {folder} was in use by {words}, which holds it no more: going on here"
        )
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(_own()).encode(), 0)


def _own():
    return {"host": socket.gethostname(), "process": os.getpid()}


def _content(file):
    return os.pread(file, 4096, 0)


def _named(content):
    """(who the lock's file names, its host); None for the host where it names nobody, as before it
    is written."""
    try:
        named = json.loads(content)
        since = f" since {named['time']}" if "time" in named else ""
        return f"process {named['process']} on {named['host']}{since}", str(named["host"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process", None
