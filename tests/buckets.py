"""A bucket on this machine: a server for the part of Google's JSON API that readers of buckets use.

Objects are whole or absent, nothing is renamed or appended to, and folders exist in names only.
"""

import contextlib
import http.server
import io
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import fsspec

ROOT = "gs://bucket"


class Server(http.server.ThreadingHTTPServer):
    """A server of one bucket.

    Attributes:
      objects: name to content.
      changes: (name, content, or None if it was removed), in order.
      refuses: True to fail every request, as a network might.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.changes: list[tuple[str, bytes | None]] = []
        self.refuses = False
        self.lock = threading.Lock()

    def change(self, name: str, content: bytes | None) -> None:
        """Writes an object, or removes it."""
        self.changes.append((name, content))
        self.generations[name] = self.generations.get(name, 0) + 1
        if content is None:
            del self.objects[name]
        else:
            self.objects[name] = content

    def become(self, objects: dict[str, bytes]) -> None:
        """Replaces the content of the bucket."""
        with self.lock:
            for name in self.objects.keys() - objects.keys():
                self.change(name, None)
            for name, content in objects.items():
                self.change(name, content)
            self.changes.clear()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name, query = self._parse()
        with self.server.lock:
            if self.server.refuses:
                return self._answer(403, {})
            if name is None:
                return self._answer(200, self._listed(query))
            if name not in self.server.objects:
                return self._answer(404, {})
            if query.get("alt") != "media":
                return self._answer(200, self._metadata(name))
            return self._content(name)

    def do_POST(self):
        _, query = self._parse()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            if not self._matches(query["name"], query):
                return self._answer(412, {})
            self.server.change(query["name"], content)
            return self._answer(200, self._metadata(query["name"]))

    def do_DELETE(self):
        name, query = self._parse()
        with self.server.lock:
            if name not in self.server.objects:
                return self._answer(404, {})
            if not self._matches(name, query):
                return self._answer(412, {})
            self.server.change(name, None)
            return self._answer(204, None)

    def _parse(self):
        """Returns the object's name, or None, and the query."""
        url = urlsplit(self.path)
        name = unquote(url.path.partition("/o/")[2])
        return name or None, dict(parse_qsl(url.query))

    def _matches(self, name, query):
        expected = query.get("ifGenerationMatch")
        generation = self.server.generations[name] if name in self.server.objects else 0
        return expected is None or int(expected) == generation

    def _metadata(self, name):
        generation, size = str(self.server.generations[name]), str(len(self.server.objects[name]))
        fields = {"bucket": "bucket", "metageneration": "1"}
        return {"name": name, "generation": generation, "size": size, **fields}

    def _listed(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names, prefixes = [], set()
        for name in sorted(self.server.objects):
            below = name.removeprefix(prefix)
            start, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
            if name.startswith(prefix) and start <= name < end:
                if delimiter and delimiter in below:
                    prefixes.add(prefix + below.split(delimiter)[0] + delimiter)
                else:
                    names.append(name)
        return {"items": [self._metadata(name) for name in names], "prefixes": sorted(prefixes)}

    def _content(self, name):
        content, code, headers = self.server.objects[name], 200, {}
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            start = int(first) if first else max(len(content) - int(last), 0)
            end = min(int(last) + 1 if first and last else len(content), len(content))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            content, code = content[start:end], 206
        headers["x-goog-generation"] = str(self.server.generations[name])
        return self._answer(code, content, headers)

    def _answer(self, code, content, headers=()):
        body = b"" if content is None else content
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class FileSystem(fsspec.AbstractFileSystem):
    """A substitute for gcsfs; fsspec itself has it make no folders, and copy and rename nothing."""

    protocol = ("gcs", "gs")

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).rstrip("/")
        _, _, below = path.partition("/")
        whole = _ask(f"?delimiter=/&prefix={quote(below + '/' if below else '', safe='')}")
        entries = [_folder(f"bucket/{name.rstrip('/')}") for name in whole["prefixes"]]
        entries += [_file(item) for item in whole["items"]]
        if not entries:
            entries = [_file(_ask("/" + quote(below, safe="")))]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path, **_):
        path = self._strip_protocol(path).rstrip("/")
        try:
            return _file(_ask("/" + quote(path.partition("/")[2], safe="")))
        except FileNotFoundError:
            self.ls(path)
            return _folder(path)

    def exists(self, path, **_):
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def _open(self, path, mode="rb", **_):
        name = quote(path.partition("/")[2], safe="")
        if mode == "rb":
            return io.BytesIO(_send("GET", f"/{name}?alt=media"))
        if mode == "wb":
            return _Writing(name)
        raise NotImplementedError(f"a bucket has no mode {mode}")

    def rm_file(self, path):
        _send("DELETE", "/" + quote(path.partition("/")[2], safe=""))


class _Writing(io.BytesIO):
    """An object that is sent whole when its file is closed, as gcsfs does."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def close(self):
        if not self.closed:
            _send("POST", f"?uploadType=media&name={self._name}", self.getvalue(), upload="/upload")
        super().close()


def _folder(name):
    return {"name": name, "size": 0, "type": "directory"}


def _file(item):
    return {"name": f"bucket/{item['name']}", "size": int(item["size"]), "type": "file"}


def _ask(rest):
    return json.loads(_send("GET", rest))


def _send(method, rest, content=None, upload=""):
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}{upload}/storage/v1/b/bucket/o{rest}"
    request = urllib.request.Request(url, content, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise FileNotFoundError(rest) from None
        raise OSError(f"{method} {rest}: {error}") from None


def install() -> None:
    """Makes this process reach buckets without gcsfs."""
    fsspec.register_implementation("gcs", FileSystem, clobber=True)
    fsspec.register_implementation("gs", FileSystem, clobber=True)


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """Starts a server for this process and its children; tensorstore reads its address once."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        os.environ |= dict.fromkeys(("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"), url)
        os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "any"
        yield server
        server.shutdown()
