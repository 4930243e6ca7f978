"""Several processes as one run: the first one speaks and writes, all stop at the same step, and all end with one cause.

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

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"
_FAILED, _HEARD = "jaxdiv/failed", "jaxdiv/heard"
_SECONDS = 1  # between looks at whether another failed
_PATIENCE = 5000  # ms that a process that failed waits for each of the others to hear of it


def begin(coordinator: str = "", count: int = 0, number: int = 0) -> None:
    """Joins the other processes, before any device is used: those named, or those that a TPU slice has.

    Args:
      coordinator: host:port of the first process, or `auto` where JAX finds the others, as under Slurm and Open MPI.
      count, number: how many there are, and which this is.

    Raises:
      ValueError: they can't be found or did not come.
    """
    named = {} if coordinator in ("", AUTO) else dict(zip(_ARGUMENTS, (coordinator, count, number), strict=True))
    if not coordinator and not _on_tpu():
        return
    # Its handler would take the place of ours, which ends with a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**named)
    except Exception as error:  # of many kinds
        if not coordinator:  # a TPU without the service that knows its slice, as in a container
            sys.stderr.write(f"alone: no other hosts of a TPU slice are known ({str(error).splitlines()[0]})\n")
            return
        raise ValueError(f"the processes of --coordinator={coordinator} can't be joined: {error}") from None
    if jax.process_count() > 1:
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(_client(), ended), daemon=True)
        watch.start()
        # Before JAX leaves the others, whose answers the watch asks for.
        atexit.register(lambda: (ended.set(), watch.join()))


_ARGUMENTS = ("coordinator_address", "num_processes", "process_id")


def _on_tpu():
    asked = jax.config.jax_platforms
    if (asked and "tpu" not in asked) or importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def are_several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process speaks and writes."""
    return not are_several() or jax.process_index() == 0


def meet(what: str) -> None:
    """Waits until all processes have come to `what`."""
    if are_several():
        multihost_utils.sync_global_devices(what)


def largest(value: int) -> int:
    """The largest of what each process gives."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value)))) if are_several() else value


def from_first(value: int) -> int:
    """What the first process gives."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if are_several() else value


def fail(cause: str, code: int) -> None:
    """Ends this process and all others, whose cause is this one's; alone it does nothing."""
    if are_several():
        told = {"process": jax.process_index(), "host": socket.gethostname(), "cause": cause, "code": code}
        with contextlib.suppress(Exception):  # another was faster
            _client().key_value_set(_FAILED, json.dumps(told))
        _leave(code)


def _watch(client, ended):
    """Ends this process soon after another has failed, wherever it waits for that one."""
    while not ended.wait(_SECONDS):
        try:
            failed = json.loads(client.key_value_try_get(_FAILED))
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the first process is gone, which JAX tells
        if failed["process"] != jax.process_index():
            told = f"error: process {failed['process']} on {failed['host']} ended: {failed['cause']}\n"
            os.write(2, told.encode())
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
    from jax._src import distributed  # JAX has no public name for what its processes tell each other

    return distributed.global_state.client
