"""Several processes as one run: the first one logs and writes, all stop at the same step, and all
end with one cause.

In a run of one process that is the first one, and nothing here waits.
"""

import functools
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
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiv.runs.failure_links import FailureLinks

AUTO = "auto"
_POLL_SECONDS = 1  # between attempts to reach the first process
_START_SECONDS = 300  # in which the first process must start
_CONNECT_SECONDS = 10  # in which the other processes link with the first
_FAILURE_SECONDS = 3  # in which the failure of another process is reported here
_LEAVE_SECONDS = 10  # in which the other processes end after a failure

_links: FailureLinks | None = None  # of a run of several processes
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
    _links = FailureLinks(functools.partial(_end_by_failure, report))
    message = b""
    if is_first():
        key = secrets.token_hex(16)
        address = host or _own_address(), _links.listen(key), key
        message = json.dumps(address).encode()
    padded = np.zeros(512, np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    padded = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
    if is_first():
        _links.wait(lambda count: count == jax.process_count() - 1, _CONNECT_SECONDS)
        return
    first, port, key = json.loads(padded.tobytes().rstrip(b"\0"))
    try:
        _links.connect(first, port, key)
    except OSError as error:
        warnings.warn(
            f"process {jax.process_index()} can't reach the first process at {first}:{port} "
            f"({error}), so it will not report why another process fails",
            RuntimeWarning,
            stacklevel=2,
        )


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
        host = socket.gethostname()
        number = jax.process_index()
        _links.send({"process": number, "host": host, "cause": cause, "code": code})
        _leave(code)


def _end_by_failure(report: Callable[[str, int], None], failure: Mapping[str, Any]) -> None:
    """Ends this process because of another one's failure, even while it waits for that one."""
    if not _is_ending.acquire(blocking=False):
        return
    if is_first():
        _links.send(failure)
    process, host, cause = failure["process"], failure["host"], failure["cause"]
    report(f"process {process} on {host} ended: {cause}", failure["code"])
    threading.Thread(target=_leave, args=(failure["code"],), daemon=True).start()


def _leave(code: int) -> None:
    """Ends this process; the first one waits for the others, which JAX aborts when it ends."""
    sys.stderr.flush()
    if is_first():
        _links.wait(lambda count: count == 0, _LEAVE_SECONDS)
    os._exit(code)
