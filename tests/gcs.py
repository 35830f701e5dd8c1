"""A small server that speaks enough of Google Cloud Storage: lists by pages, reads, multipart and chunked uploads."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "cloud-bucket"


class Cloud:
    """What the server holds.

    Attributes:
        objects: content and generation by name.
        pages: how many pages of lists it gave.
        url: its address.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.pages = 0
        self.url = ""
        self._generation = 1000

    def put(self, name: str, content: bytes) -> None:
        """Put an object there."""
        self._generation += 1
        self.objects[name] = (content, self._generation)

    def has(self, name: str, generation: str | None) -> bool:
        """Whether an object is there, in a version that was asked for."""
        return name in self.objects and generation in (None, str(self.objects[name][1]))

    def resource(self, name: str) -> dict[str, object]:
        """What the API says of an object."""
        content, generation = self.objects[name]
        return {"name": name, "bucket": BUCKET, "size": str(len(content)), "generation": str(generation)}

    def page(self, query: dict[str, str]) -> dict[str, object]:
        """A page of a list, names and folders together."""
        self.pages += 1
        prefix, size = query.get("prefix", ""), int(query["maxResults"]) if "maxResults" in query else 1000
        found = dict[str, bool]()
        for name in sorted(self.objects):
            if name.startswith(prefix):
                folder, slash, _rest = name[len(prefix) :].partition("/")
                found[prefix + folder + slash if slash and query.get("delimiter") else name] = bool(slash)
        names = [name for name in found if name > query.get("pageToken", "")]
        more = {"nextPageToken": names[size - 1]} if len(names) > size else {}
        here = names[:size]
        items = [self.resource(name) for name in here if not name.endswith("/")]
        return {"items": items, "prefixes": [name for name in here if name.endswith("/")], **more}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing is told."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        found = re.fullmatch(rf"/(?:download/)?storage/v1/b/{BUCKET}/o(?:/(.+))?", parts.path)
        name = unquote(found[1] or "") if found else ""
        if found is None or (name and not self.cloud.has(name, query.get("generation"))):
            self._answer(404, b'{"error": {"code": 404, "message": "Not Found"}}')
        elif not name:
            self._answer(200, json.dumps(self.cloud.page(query)).encode())
        elif query.get("alt") == "media":
            start, end = map(int, re.findall(r"\d+", self.headers.get("Range", "bytes=0-999999999")))
            part = self.cloud.objects[name][0][start : end + 1]
            self._answer(200 if part else 416, part)
        else:
            self._answer(200, json.dumps(self.cloud.resource(name)).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _start, head, content, _end = body.split(b"--==0==", 3)
        name = json.loads(head.partition(b"\n\n")[2])["name"]
        if "ifGenerationMatch=0" in self.path and name in self.cloud.objects:
            self._answer(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
            return
        self.cloud.put(name, content.partition(b"\n\n")[2].removesuffix(b"\n"))
        self._answer(200, json.dumps(self.cloud.resource(name)).encode())

    def do_DELETE(self) -> None:
        del self.cloud.objects[unquote(self.path.partition("/o/")[2].partition("?")[0])]
        self._answer(204, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def opened() -> Iterator[Cloud]:
    """The server, for as long as this lasts."""
    cloud = Cloud()
    handler = type("Handler", (_Handler,), {"cloud": cloud})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    cloud.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
