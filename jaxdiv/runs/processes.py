"""Several processes as one run: the first one speaks and writes, all stop at the same step, and all
end with one cause.

Alone, a process is the first, and nothing here waits.
"""

import atexit
import contextlib
import glob
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"
_FAILED, _HEARD = "jaxdiv/failed", "jaxdiv/heard"
_SECONDS = 1  # between looks for another process, or for its failure
_COME = 300  # seconds in which the first process must come
_PATIENCE = 5000  # ms that a process that failed waits for each of the others to hear of it


def initialize(coordinator: str, count: int, number: int, tell: Callable[[str, int], None]) -> None:
    """Joins the other processes, before any device is used: those named, or those that a TPU slice
    has.

    Args:
      coordinator: host:port of the first process, or `auto` where JAX finds the others, as under
        Slurm and Open MPI.
      count, number: how many there are, and which this is.
      tell: called with the cause and the exit code before this process ends because another one
        failed.

    Raises:
      ValueError: they can't be found or did not come.
    """
    named = {}
    if coordinator not in ("", AUTO):
        named = {"coordinator_address": coordinator, "num_processes": count, "process_id": number}
        _reach(coordinator, number)
    elif not coordinator and not _on_tpu():
        return
    # Its handler would take the place of ours, which ends with a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**named)
    except Exception as error:  # of many kinds
        if not coordinator:  # a TPU without the service that knows its slice, as in a container
            return
        raise ValueError(
            f"the processes of --coordinator={coordinator} can't be joined: {error}"
        ) from None
    if jax.process_count() > 1:
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(_client(), ended, tell), daemon=True)
        watch.start()
        # Before JAX leaves the others, whose answers the watch asks for.
        atexit.register(lambda: (ended.set(), watch.join()))


def _reach(coordinator, number):
    """Waits for the first process here, where a signal is heard, and not in JAX, which aborts in
    the end."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator must be HOST:PORT or {AUTO}, got {coordinator!r}")
    latest = time.monotonic() + _COME
    while number:
        try:
            socket.create_connection((host, int(port)), timeout=_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > latest:
                raise ValueError(
                    f"no first process came to --coordinator={coordinator} in {_COME} s: {error}"
                ) from None
            time.sleep(_SECONDS)


def _on_tpu():
    asked = jax.config.jax_platforms
    if (asked and "tpu" not in asked) or importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def is_multiprocess() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process speaks and writes."""
    return not is_multiprocess() or jax.process_index() == 0


def barrier(what: str) -> None:
    """Waits until all processes have come to `what`."""
    if is_multiprocess():
        multihost_utils.sync_global_devices(what)


def maximum(value: int) -> int:
    """The largest of what each process gives."""
    return (
        int(np.max(multihost_utils.process_allgather(np.int32(value))))
        if is_multiprocess()
        else value
    )


def broadcast_from_first(value: int) -> int:
    """What the first process gives."""
    return (
        int(multihost_utils.broadcast_one_to_all(np.int32(value))) if is_multiprocess() else value
    )


def event_fields() -> dict[str, int]:
    """What an event says of the process that tells it: its number as `process`, or nothing where it
    is alone."""
    return {"process": jax.process_index()} if is_multiprocess() else {}


def check_for_failure() -> None:
    """After an error that may be another's, whose own cause then comes within this time and ends
    this process."""
    if is_multiprocess():
        time.sleep(3 * _SECONDS)


def fail(cause: str, code: int) -> None:
    """Ends this process and all others, whose cause is this one's; alone it does nothing."""
    if is_multiprocess():
        told = {
            "process": jax.process_index(),
            "host": socket.gethostname(),
            "cause": cause,
            "code": code,
        }
        with contextlib.suppress(Exception):  # another was faster
            _client().key_value_set(_FAILED, json.dumps(told))
        _leave(code)


def _watch(client, ended, tell):
    """Ends this process soon after another has failed, wherever it waits for that one."""
    while not ended.wait(_SECONDS):
        try:
            failed = json.loads(client.key_value_try_get(_FAILED))
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the first process is gone, which JAX tells
        if failed["process"] != jax.process_index():
            tell(
                f"process {failed['process']} on {failed['host']} ended: {failed['cause']}",
                failed["code"],
            )
            _leave(failed["code"])
        return


def _leave(code):
    """Ends this process once all know why: with the first one goes what they hear it by."""
    sys.stderr.flush()
    own, client = jax.process_index(), _client()
    with contextlib.suppress(Exception):  # one may be gone
        client.key_value_set(f"{_HEARD}/{own}", "", allow_overwrite=True)
        for other in range(jax.process_count()):
            client.blocking_key_value_get(f"{_HEARD}/{other}", _PATIENCE)
    if own == 0:
        time.sleep(_SECONDS)
    os._exit(code)


def _client():
    from jax._src import (
        distributed,
    )  # JAX has no public name for what its processes tell each other

    return distributed.global_state.client
