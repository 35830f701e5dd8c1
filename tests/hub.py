"""A stand-in on this machine for the Hugging Face hub: as much of it as reading datasets needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Answer = tuple[int, bytes, dict[str, str]]
NOT_FOUND: Answer = (404, b"{}", {})


class Hub:
    """A hub of datasets.

    Attributes:
        files: content by name, which begins with the owner and the repository.
        requests: the paths that were asked for, and their headers.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def below(self, folder: str) -> tuple[list[str], list[str]]:
        """Files and folders in a folder, whose name ends with a slash."""
        names = [name.removeprefix(folder) for name in self.files if name.startswith(folder)]
        folders = {name.partition("/")[0] for name in names if "/" in name}
        return sorted(name for name in names if "/" not in name), sorted(folders)


def answer(hub: Hub, path: str, wanted: str | None) -> Answer:
    """What it answers to a request for a path, or for a part of what is there."""
    if path.startswith("/api/datasets/"):
        owner, repository, *rest = path.removeprefix("/api/datasets/").split("/")
        name = f"{owner}/{repository}/"
        if not any(one.startswith(name) for one in hub.files):
            return NOT_FOUND
        if rest[:1] == ["tree"]:
            above = "/".join(rest[2:])
            files, folders = hub.below(f"{name}{above}/" if above else name)
            if not files and not folders:
                return NOT_FOUND
            prefix = f"{above}/" if above else ""
            found = [
                *({"type": "directory", "path": prefix + one, "oid": "0" * 40} for one in folders),
                *(_hub_file(hub, name, prefix + one) for one in files),
            ]
            return 200, json.dumps(found).encode(), {"Content-Type": "application/json"}
        return 200, json.dumps({"id": name[:-1], "sha": "c" * 40}).encode(), {"Content-Type": "application/json"}
    place, _mark, rest_of = path.removeprefix("/datasets/").partition("/resolve/")
    name = f"{place}/{unquote(rest_of.partition('/')[2])}"
    if name not in hub.files:
        return NOT_FOUND
    return _part(hub.files[name], wanted)


def _hub_file(hub: Hub, name: str, path: str) -> dict[str, object]:
    content = hub.files[name + path]
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _part(content: bytes, wanted: str | None) -> Answer:
    if not wanted:
        return 200, content, {}
    start, end = wanted.removeprefix("bytes=").split("-")
    if int(start) >= len(content):
        return 416, b"", {}
    last = min(int(end or len(content)), len(content) - 1)
    return 206, content[int(start) : last + 1], {"Content-Range": f"bytes {start}-{last}/{len(content)}"}


@contextmanager
def opened() -> Iterator[tuple[Hub, str]]:
    """A hub, and the address of its server."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, body, headers = answer(hub, urlsplit(self.path).path, self.headers.get("Range"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET  # noqa: N815 - the server's names

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield hub, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
