"""Runs code in forks of one process that has imported what takes every program seconds.

A fork has its own pipes, environment, signals and exit code; its imports are done. What depends on
a fresh interpreter, such as its hash seed or a signal during imports, needs `runs.start_python`.
"""

import atexit
import functools
import importlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings

MAX_REQUEST = 2**18  # bytes
# Slow ones, none of which declares a flag that a program lacks.
IMPORTS = ("experiments.common.run_results", "jaxdiv.training.loop", "jaxdiv.training.students")


def command(code: str, *arguments: str) -> list[str]:
    """Returns the command of a small process that has a fork run the code and ends as it ends.

    The fork joins the process group that the small process must lead, and uses its pipes. Signals
    are for the group; the small process ignores those that it can.
    """
    return [sys.executable, "-I", "-S", __file__, _address(), code, *arguments]


@functools.cache
def _address() -> str:
    """Starts this process's server, which ends with it, and returns its socket's path."""
    folder = tempfile.TemporaryDirectory(prefix="jaxdiv-forks-")
    address = f"{folder.name}/socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", address],
        cwd=pathlib.Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"},
    )
    server.stdout.readline()  # it listens

    @atexit.register
    def end():
        server.communicate()  # closes its input
        folder.cleanup()

    return address


def serve(address: str) -> None:
    """Forks for each request until standard input is closed; returns in each fork."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(16)
    print("listens", flush=True)
    for module in IMPORTS:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaps keepers
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            sys.exit()
        connection, _ = listener.accept()
        request, pipes, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
        if _fork() == 0:
            break
        for descriptor in (connection.detach(), *pipes):
            os.close(descriptor)
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if program := _fork():
        for pipe in pipes:
            os.close(pipe)
        _, status = os.waitpid(program, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    for standard, pipe in enumerate(pipes):
        os.dup2(pipe, standard)
        os.close(pipe)
    request = json.loads(request)
    os.setpgid(0, request["group"])
    os.environ.clear()
    os.environ |= request["environment"]
    sys.argv = request["arguments"]
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of its threads, which have not started
        return os.fork()


def relay(address: str, *arguments: str) -> None:
    """Has the server run `arguments`, code and its arguments, in this process's place."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGABRT):
        signal.signal(signum, signal.SIG_IGN)
    environment = dict(os.environ)
    request = {"group": os.getpgrp(), "environment": environment, "arguments": arguments}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        code = int(connection.recv(16))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.flags.isolated:
        relay(*sys.argv[1:])
    serve(sys.argv[1])
    code, sys.argv[0] = sys.argv[0], "-c"
    exec(code, {"__name__": "__main__"})
