"""Several processes as one run: the first one logs and writes, all stop at the same step, and all
end with one cause.

In a run of one process that is the first one, and nothing here waits. In others the first process
has a TCP link to each other one. A process that fails reports its cause over its links, and the
first passes on what it receives. A message is one line of JSON; the first line over a link is the
key that only processes of the run know.
"""

import contextlib
import glob
import hmac
import importlib.util
import json
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"
_POLL_SECONDS = 1  # between attempts to reach the first process
_START_SECONDS = 300  # in which the first process must start
_CONNECT_SECONDS = 10  # in which the other processes link with the first, and say the key
_FAILURE_SECONDS = 3  # in which the failure of another process is reported here
_LEAVE_SECONDS = 10  # in which the other processes end after a failure

_ACCEPTED = b"accepted\n"
_links: set[socket.socket] | None = None  # of a run of several processes
_is_ending = threading.Lock()


def initialize(
    coordinator: str, count: int, number: int, report: Callable[[str, int], None]
) -> None:
    """Joins the other processes of the run, before any device is used.

    Args:
      coordinator: host:port of the first process; `auto` if JAX finds the processes, as under Slurm
        and Open MPI; empty for one process, or for all hosts of a TPU slice.
      count: number of processes.
      number: index of this process.
      report: called with a cause and an exit code before this process ends because another failed.

    Raises:
      ValueError: the processes can't be found, or did not start in time.
    """
    arguments, host = (), ""
    if coordinator not in ("", AUTO):
        arguments = coordinator, count, number
        host = _wait_for_first(coordinator, number)
    elif not coordinator and not _is_on_tpu():
        return
    # JAX's handler of SIGTERM would replace the training loop's, which saves a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*arguments)
    except Exception as error:  # libraries raise errors of many types
        if not coordinator:  # a TPU without the service that knows its slice, as in a container
            return
        raise ValueError(
            f"the processes of --coordinator={coordinator} can't be joined: {error}"
        ) from None
    if is_multiprocess():
        _connect(host, report)


def _wait_for_first(coordinator: str, number: int) -> str:
    """Waits until the first process listens, and returns its host.

    JAX would wait as well, but without noticing signals, and abort in the end.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator must be HOST:PORT or {AUTO}, got {coordinator!r}")
    deadline = time.monotonic() + _START_SECONDS
    while number:
        try:
            socket.create_connection((host, int(port)), timeout=_POLL_SECONDS).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"no first process answered at --coordinator={coordinator} within "
                    f"{_START_SECONDS} s: {error}"
                ) from None
            time.sleep(_POLL_SECONDS)
    return host


def _is_on_tpu():
    platforms = jax.config.jax_platforms
    if (platforms and "tpu" not in platforms) or importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _connect(host: str, report: Callable[[str, int], None]) -> None:
    """Links every other process with the first, whose address is broadcast.

    A process that can't reach the first one, as behind a firewall, runs without a link: the failure
    of another then ends it without a cause.
    """
    global _links
    _links, address = set(), None
    if is_first():
        key = secrets.token_hex(16)
        server = _Server(("", 0), lambda link, *_: _accept(link, key, report))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = host or _own_address(), server.server_address[1], key
    message = np.frombuffer(json.dumps(address).ljust(512).encode(), np.uint8)
    message = np.asarray(multihost_utils.broadcast_one_to_all(message), np.uint8)
    if is_first():
        _wait_for_links(jax.process_count() - 1, _CONNECT_SECONDS)
        return
    first, port, key = json.loads(message.tobytes())
    try:
        link = socket.create_connection((first, port), timeout=_CONNECT_SECONDS)
        link.sendall(f"{key}\n".encode())
        stream = link.makefile("rb")
        if stream.readline(len(_ACCEPTED)) != _ACCEPTED:
            link.close()
            raise OSError("it refuses the connection")
    except OSError as error:
        warnings.warn(
            f"process {jax.process_index()} can't reach the first process at {first}:{port} "
            f"({error}), so it will not report why another process fails",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    _links.add(link)
    threading.Thread(target=_listen, args=(link, stream, report), daemon=True).start()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, request_queue_size = True, 128


def _accept(link: socket.socket, key: str, report: Callable[[str, int], None]) -> None:
    """Listens to a process that has connected and knows the key."""
    link.settimeout(_CONNECT_SECONDS)
    with contextlib.suppress(OSError):
        stream = link.makefile("rb")
        if hmac.compare_digest(stream.readline(256).rstrip(), key.encode()):
            link.sendall(_ACCEPTED)
            _links.add(link)
            _listen(link, stream, report)


def _listen(
    link: socket.socket, messages: Iterable[bytes], report: Callable[[str, int], None]
) -> None:
    """Ends this process after a failure that the other one reports; returns when that ends.

    The process ends even while it waits for the other one.
    """
    link.settimeout(None)
    with contextlib.suppress(OSError, ValueError):
        for message in messages:
            failure = json.loads(message)
            if _is_ending.acquire(blocking=False):
                if is_first():
                    _send(message)
                report(f"{failure['process']} ended: {failure['cause']}", failure["code"])
                # In a thread of its own, since the first process still reads here until this link
                # ends.
                threading.Thread(target=_leave, args=(failure["code"],), daemon=True).start()
    _links.discard(link)


def _send(message: bytes) -> None:
    """Sends a message over every link; a process that has ended is skipped."""
    for link in list(_links):
        with contextlib.suppress(OSError):
            link.sendall(message)


def _wait_for_links(count: int, seconds: float) -> None:
    """Waits until this process has so many links, but not longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while len(_links) != count and time.monotonic() < deadline:
        time.sleep(0.02)


def _own_address() -> str:
    """Returns the address of this host's default route; no packet is sent to find it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
    except OSError:  # a host without a route
        return socket.gethostname()


def is_multiprocess() -> bool:
    """Returns True if the run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Returns True in the process that logs and writes."""
    return not is_multiprocess() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have reached the barrier of this name."""
    if is_multiprocess():
        multihost_utils.sync_global_devices(name)


def maximum(value: int) -> int:
    """Returns the largest of all processes' values."""
    if not is_multiprocess():
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def broadcast_from_first(value: int) -> int:
    """Returns the first process's value."""
    if not is_multiprocess():
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def event_fields() -> dict[str, int]:
    """Returns the field `process` of this process's events; none in a run of one process."""
    return {"process": jax.process_index()} if is_multiprocess() else {}


def check_for_failure() -> None:
    """Waits, after an error here, for the failure of another process that may have caused it.

    If there is one, it is reported and ends this process.
    """
    if is_multiprocess():
        time.sleep(_FAILURE_SECONDS)


def fail(cause: str, code: int) -> None:
    """Ends this process and reports its cause in all others; does nothing in a single process."""
    if _links is not None:
        process = f"process {jax.process_index()} on {socket.gethostname()}"
        failure = {"process": process, "cause": cause, "code": code}
        _send(f"{json.dumps(failure)}\n".encode())
        _leave(code)


def _leave(code: int) -> None:
    """Ends this process; the first one waits for the others, which JAX aborts when it ends."""
    sys.stderr.flush()
    if is_first():
        _wait_for_links(0, _LEAVE_SECONDS)
    os._exit(code)
