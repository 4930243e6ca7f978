"""Connections over which a failing process reports its cause to the others of a run.

The first process has a link to each other process, and passes on what it receives. A message is
one line of JSON; a client's first line is the key that only processes of the run know.
"""

import contextlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

_TIMEOUT_SECONDS = 10  # of connecting, and of the key
_ACCEPTED = b"accepted\n"


class FailureLinks:
    """The links of this process.

    Args:
      receive: called in a thread with each failure that another process reports.
    """

    def __init__(self, receive: Callable[[Mapping[str, Any]], None]):
        self._receive = receive
        self._links: set[socket.socket] = set()

    def listen(self, key: str) -> int:
        """Accepts links in the background, and returns the port."""
        server = socket.create_server(("", 0))
        threading.Thread(target=self._accept, args=(server, key), daemon=True).start()
        return server.getsockname()[1]

    def connect(self, host: str, port: int, key: str) -> None:
        """Links this process with the first one. Raises OSError if that can't be reached."""
        link = socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS)
        link.sendall(f"{key}\n".encode())
        stream = link.makefile("rb")
        if stream.readline(len(_ACCEPTED)) != _ACCEPTED:
            link.close()
            raise OSError("it refuses the connection")
        self._links.add(link)
        threading.Thread(target=self._read, args=(link, stream), daemon=True).start()

    def send(self, failure: Mapping[str, Any]) -> None:
        """Reports a failure over every link; a process that has ended is skipped."""
        message = f"{json.dumps(failure)}\n".encode()
        for link in list(self._links):
            with contextlib.suppress(OSError):
                link.sendall(message)

    def wait(self, is_over: Callable[[int], bool], seconds: float) -> None:
        """Waits until the number of links fulfils a condition, but not longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while not is_over(len(self._links)) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _accept(self, server: socket.socket, key: str) -> None:
        while True:
            link, _ = server.accept()
            # In a thread of its own, as a stranger may connect and say nothing.
            threading.Thread(target=self._serve, args=(link, key), daemon=True).start()

    def _serve(self, link: socket.socket, key: str) -> None:
        link.settimeout(_TIMEOUT_SECONDS)
        with contextlib.suppress(OSError):
            stream = link.makefile("rb")
            if hmac.compare_digest(stream.readline(256).rstrip(), key.encode()):
                link.sendall(_ACCEPTED)
                self._links.add(link)
                self._read(link, stream)
        link.close()

    def _read(self, link: socket.socket, stream: Any) -> None:
        """Passes on messages until the other process ends."""
        link.settimeout(None)
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                self._receive(json.loads(line))
        self._links.discard(link)
