"""Several processes as one run: the first one logs and writes, all stop at the same step, and all
end with one cause.

In a run of one process that is the first one, and nothing here waits.
"""

import contextlib
import glob
import importlib.util
import json
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing import AuthenticationError, connection

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"
_POLL_SECONDS = 1  # between attempts to reach the first process
_START_SECONDS = 300  # in which the first process must start
_CONNECT_SECONDS = 10  # in which the processes connect
_FAILURE_SECONDS = 3  # in which the failure of another process is reported here
_LEAVE_SECONDS = 10  # in which the other processes end after a failure

# Connections over which a failing process sends its cause: the first process has one to each other
# process, and the others have one to the first.
_peers: list[connection.Connection] = []
_watcher: threading.Thread | None = None


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
    arguments, host = {}, ""
    if coordinator not in ("", AUTO):
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": number,
        }
        host = _wait_for_first(coordinator, number)
    elif not coordinator and not _is_on_tpu():
        return
    # JAX's handler of SIGTERM would replace the training loop's, which saves a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments)
    except Exception as error:  # libraries raise errors of many types
        if not coordinator:  # a TPU without the service that knows its slice, as in a container
            return
        raise ValueError(
            f"the processes of --coordinator={coordinator} can't be joined: {error}"
        ) from None
    if is_multiprocess():
        global _watcher
        _connect(host)
        _watcher = threading.Thread(target=_watch, args=(report,), daemon=True)
        _watcher.start()


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


def _connect(host: str) -> None:
    """Connects every other process with the first, whose address is broadcast.

    A process that can't reach the first one, as behind a firewall, runs without a connection: the
    failure of another then ends it without a cause.
    """
    first, listener, message = jax.process_index() == 0, None, b""
    key = secrets.token_bytes(16)
    if first:
        listener = connection.Listener(("", 0), backlog=jax.process_count(), authkey=key)
        address = [host or _own_address(), listener.address[1], key.hex()]
        message = json.dumps(address).encode()
    padded = np.zeros(512, np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    padded = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
    if first:
        thread = threading.Thread(target=_accept, args=(listener,), daemon=True)
        thread.start()
        thread.join(_CONNECT_SECONDS)
        return
    host, port, key = json.loads(padded.tobytes().rstrip(b"\0"))
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        _peers.append(connection.Client((host, port), authkey=bytes.fromhex(key)))
    except (OSError, EOFError, AuthenticationError) as error:
        warnings.warn(
            f"process {jax.process_index()} can't reach the first process at {host}:{port} "
            f"({error}), so it will not report why another process fails",
            RuntimeWarning,
            stacklevel=2,
        )


def _accept(listener: connection.Listener) -> None:
    """Accepts the connections of the other processes; a stranger does not know the key."""
    with listener:
        while len(_peers) < jax.process_count() - 1:
            with contextlib.suppress(AuthenticationError, EOFError, OSError):
                _peers.append(listener.accept())


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
    if is_multiprocess():
        _send(
            {
                "process": jax.process_index(),
                "host": socket.gethostname(),
                "cause": cause,
                "code": code,
            },
            _peers,
        )
        _leave(code)


def _send(failure, peers):
    for peer in peers:
        with contextlib.suppress(OSError):  # it may have ended
            peer.send_bytes(json.dumps(failure).encode())


def _watch(report: Callable[[str, int], None]) -> None:
    """Ends this process once another one fails, even while it waits for that one.

    A peer that ends without a message was killed, which JAX reports, or the run is over.
    """
    code = None
    while _peers:
        for peer in connection.wait(_peers):
            try:
                failure = json.loads(peer.recv_bytes())
            except (EOFError, OSError):
                _peers.remove(peer)
                continue
            if code is not None:
                continue
            code = failure["code"]
            _send(failure, [other for other in _peers if other is not peer])
            report(
                f"process {failure['process']} on {failure['host']} ended: {failure['cause']}", code
            )
            threading.Thread(target=_leave, args=(code,), daemon=True).start()


def _leave(code: int) -> None:
    """Ends this process; the first one waits for the others, which JAX aborts when it ends."""
    sys.stderr.flush()
    if jax.process_index() == 0 and _watcher is not None:
        _watcher.join(_LEAVE_SECONDS)
    os._exit(code)
