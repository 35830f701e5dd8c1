"""A web server on this machine for tests of addresses: files with marks of their versions, and oddities of servers."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Web:
    """A web server.

    Attributes:
        files: content by path, with the slash.
        url: its address.
        ranges: whether it gives parts of files.
        marks: what the `ETag` begins with; None: it has none.
        status: answers before those that are right, by path: taken from the front.
        requests: how many, by method and path.
        cuts: how many of the next answers end after half of the body.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.url = ""
        self.ranges = True
        self.marks: str | None = '"'
        self.status: dict[str, list[int]] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        self.cuts = 0
        self.headers: list[dict[str, str]] = []

    def mark_of(self, path: str) -> str | None:
        """The `ETag` of a file."""
        digest = hashlib.sha1(self.files[path]).hexdigest()
        return None if self.marks is None else f'{self.marks}{digest}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        web, path = self.web, self.path.partition("?")[0]
        web.requests[self.command, path] += 1
        web.headers.append(dict(self.headers))
        if web.status.get(path):
            self._answer(web.status[path].pop(0), b"not now", {"Retry-After": "0"})
            return
        if path == "/moved" or path not in web.files:
            self._answer(*((302, b"", {"Location": "/a.png"}) if path == "/moved" else (404, b"no", {})))
            return
        mark = web.mark_of(path)
        headers = {"ETag": mark} if mark else {}
        if mark and self.headers.get("If-Match") not in (None, mark):
            self._answer(412, b"other", headers)
            return
        content, status = web.files[path], 200
        wanted = self.headers.get("Range")
        if wanted and web.ranges:
            start, end = wanted.removeprefix("bytes=").split("-")
            if int(start) >= len(content):
                self._answer(416, b"", headers)
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[int(start) : int(end) + 1], 206
        self._answer(status, content, headers)

    do_HEAD = do_GET  # noqa: N815 - the server's name for it

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.web.cuts and status < 300:
            self.web.cuts -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server, and requests that are made again at once."""
    from tests.stores import forget_connections, wait_no_longer  # noqa: PLC0415

    forget_connections()
    wait_no_longer(monkeypatch)
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    yield web
    server.shutdown()
    server.server_close()
    forget_connections()
