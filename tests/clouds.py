"""Stand-ins on this machine for Google Cloud Storage and the Hugging Face hub: as much of them as reading needs."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, bytes, dict[str, str]]
NOT_FOUND: Answer = (404, b"{}", {})


class Cloud:
    """A store of files.

    Attributes:
        files: content by name, which begins with the bucket or repository.
        versions: how often each was put.
        requests: the paths that were asked for, and their headers.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def put(self, name: str, content: bytes) -> None:
        """Put a file there."""
        self.files[name] = content
        self.versions[name] = self.versions.get(name, 0) + 1

    def below(self, folder: str) -> tuple[list[str], list[str]]:
        """Files and folders in a folder, whose name ends with a slash."""
        names = [name.removeprefix(folder) for name in self.files if name.startswith(folder)]
        folders = {name.partition("/")[0] for name in names if "/" in name}
        return sorted(name for name in names if "/" not in name), sorted(folders)


def google(cloud: Cloud, path: str, query: dict[str, list[str]], wanted: str | None) -> Answer:
    """What Google Cloud Storage answers."""
    media, _slash, rest = path.partition("/storage/v1/b/")
    bucket, _o, key = rest.partition("/o")
    key = unquote(key.removeprefix("/"))
    if not key:
        if "/o" not in rest:
            return NOT_FOUND
        prefix = query.get("prefix", [""])[0]
        files, folders = cloud.below(f"{bucket}/{prefix}")
        items = [_google_object(cloud, bucket, prefix + name) for name in files]
        prefixes = [f"{prefix}{name}/" for name in folders]
        return 200, json.dumps({"items": items, "prefixes": prefixes}).encode(), {"Content-Type": "application/json"}
    name = f"{bucket}/{key}"
    if name not in cloud.files or query.get("generation", [str(cloud.versions[name])]) != [str(cloud.versions[name])]:
        return NOT_FOUND
    if media == "/download":
        return _part(cloud.files[name], wanted)
    return 200, json.dumps(_google_object(cloud, bucket, key)).encode(), {"Content-Type": "application/json"}


def _google_object(cloud: Cloud, bucket: str, key: str) -> dict[str, str]:
    name = f"{bucket}/{key}"
    size, version = str(len(cloud.files[name])), str(cloud.versions[name])
    return {"name": key, "bucket": bucket, "size": size, "generation": version, "kind": "storage#object"}


def hub(cloud: Cloud, path: str, query: dict[str, list[str]], wanted: str | None) -> Answer:
    """What the hub answers for datasets."""
    if path.startswith("/api/datasets/"):
        owner, repository, *rest = path.removeprefix("/api/datasets/").split("/")
        name = f"{owner}/{repository}/"
        if not any(one.startswith(name) for one in cloud.files):
            return NOT_FOUND
        if rest[:1] == ["tree"]:
            above = "/".join(rest[2:])
            files, folders = cloud.below(f"{name}{above}/" if above else name)
            if not files and not folders:
                return NOT_FOUND
            prefix = f"{above}/" if above else ""
            found = [
                *({"type": "directory", "path": prefix + one, "oid": "0" * 40} for one in folders),
                *(_hub_file(cloud, name, prefix + one) for one in files),
            ]
            return 200, json.dumps(found).encode(), {"Content-Type": "application/json"}
        return 200, json.dumps({"id": name[:-1], "sha": "c" * 40}).encode(), {"Content-Type": "application/json"}
    place, _mark, rest_of = path.removeprefix("/datasets/").partition("/resolve/")
    name = f"{place}/{unquote(rest_of.partition('/')[2])}"
    if name not in cloud.files:
        return NOT_FOUND
    return _part(cloud.files[name], wanted)


def _hub_file(cloud: Cloud, name: str, path: str) -> dict[str, object]:
    content = cloud.files[name + path]
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _part(content: bytes, wanted: str | None) -> Answer:
    if not wanted:
        return 200, content, {}
    start, end = wanted.removeprefix("bytes=").split("-")
    if int(start) >= len(content):
        return 416, b"", {}
    last = min(int(end or len(content)), len(content) - 1)
    return 206, content[int(start) : last + 1], {"Content-Range": f"bytes {start}-{last}/{len(content)}"}


Service = Callable[[Cloud, str, dict[str, list[str]], str | None], Answer]


@contextmanager
def serving(service: Service) -> Iterator[tuple[Cloud, str]]:
    """A cloud, and the address of its server."""
    cloud = Cloud()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            cloud.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, body, headers = service(cloud, url.path, parse_qs(url.query), self.headers.get("Range"))
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
    yield cloud, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
