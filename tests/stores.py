"""A store of objects on this machine for tests of addresses, and what networks do to requests on their way to it.

Import `bucket` or `faulty` into a test module to use it as a fixture. The heavy imports are inside of the functions.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

import pytest

REGION = "us-east-1"
# What may happen to a request: S3's "come back later", a connection that is cut while the body is on its way, one that
# is cut after the store has done what was asked, half an answer, credentials that may not.
Fault = Literal["slow_down", "cut_request", "cut_answer", "half_answer", "refuse"]
_HOP_HEADERS = frozenset({"connection", "expect", "transfer-encoding"})
_ANSWERS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "refuse": (403, "AccessDenied", "Access Denied"),
}


@lru_cache(1)
def moto_url() -> str:
    """The address of a server that speaks S3; started once a process, and gone with it."""
    import logging  # noqa: PLC0415

    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or every request would be told
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def client() -> Any:
    """A client of the store, by a way without faults."""
    import boto3  # noqa: PLC0415

    return boto3.client(
        "s3", endpoint_url=moto_url(), region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test"
    )


class Bucket:
    """A bucket of its own for one test.

    Attributes:
        name: of the bucket.
        address: `s3://` and its name.
        environment: what another process needs to reach it.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.address = f"s3://{name}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": url,
        }

    def put(self, key: str, content: bytes) -> None:
        """Put an object there, as somebody else would."""
        client().put_object(Bucket=self.name, Key=key, Body=content)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """All objects by their keys."""
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return {key: client().get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}


def _opened(name: str, url: str, patch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket, which this process finds, too."""
    found = Bucket(name, url)
    client().create_bucket(Bucket=name)
    for variable, value in found.environment.items():
        patch.setenv(variable, value)
    patch.delenv("AWS_PROFILE", raising=False)
    forget_connections()
    wait_no_longer(patch)
    return found


def forget_connections() -> None:
    """The next request reads the surroundings again."""
    from fsspec.spec import AbstractFileSystem  # noqa: PLC0415
    from s3fs import S3FileSystem  # noqa: PLC0415

    from batchcap.remote import protocols  # noqa: PLC0415

    protocols._filesystem.cache_clear()
    for kind in (AbstractFileSystem, S3FileSystem):
        kind.clear_instance_cache()


def wait_no_longer(patch: pytest.MonkeyPatch) -> None:
    """Requests are made again at once."""
    from batchcap.remote import attempts  # noqa: PLC0415

    attempts._silent.clear()
    patch.setattr(attempts, "FIRST_WAIT_S", 0.0)
    patch.setattr(attempts, "MAX_WAIT_S", 0.0)


_numbers = iter(range(1, 1 << 30))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket, to which the surroundings lead."""
    yield _opened(f"bucket-{next(_numbers)}", moto_url(), monkeypatch)
    forget_connections()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator["FaultyBucket"]:
    """A bucket, to which the surroundings lead by a way on which faults may happen."""
    with FaultyWay() as way:
        found = _opened(f"bucket-{next(_numbers)}", way.url, monkeypatch)
        yield FaultyBucket(found, way)
    forget_connections()


class FaultyBucket:
    """A bucket, and the way there."""

    def __init__(self, bucket: Bucket, way: "FaultyWay") -> None:
        self.bucket = bucket
        self.way = way


class FaultyWay:
    """A server before the store: hands requests on, unless something is to happen to them.

    Attributes:
        url: its address.
        seen: method and path of each request, in order.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._faults: list[tuple[str, str, Fault]] = []
        self._always: list[tuple[str, str, Fault]] = []
        self._lock = threading.Lock()
        way = self

        class Handler(_Handler):
            def fault(self) -> Fault | None:
                return way._next(self.command, self.path)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def happens(self, fault: Fault, times: int = 1, method: str = "PUT", part: str = "") -> None:
        """The next requests of a method with this in their path meet a fault; with `times=0` all of them."""
        chosen = self._faults if times else self._always
        chosen += [(method, part, fault)] * (times or 1)

    def heals(self) -> None:
        """Nothing happens any more."""
        self._faults.clear()
        self._always.clear()

    def count(self, method: str, part: str = "") -> int:
        """How many requests of a method there were with this in their path."""
        return sum(one == method and part in path for one, path in self.seen)

    def _next(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for held in (self._faults, self._always):
                for one in held:
                    if one[0] == method and one[1] in path:
                        if held is self._faults:
                            held.remove(one)
                        return one[2]
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def fault(self) -> Fault | None:
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing is told."""

    def _handle(self) -> None:
        fault = self.fault()
        if fault == "cut_request":
            self._cut()
            return
        body = self._body()
        if fault in _ANSWERS:
            self._answer_error(*_ANSWERS[fault])
            return
        there = HTTPConnection(moto_url().removeprefix("http://"), timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
        there.request(self.command, self.path, body, headers)
        answer = there.getresponse()
        content = answer.read()
        there.close()
        if fault == "cut_answer":
            self._cut()
            return
        self.send_response_only(answer.status)
        is_head = self.command == "HEAD"
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP_HEADERS, *(() if is_head else ("content-length",))):
                self.send_header(name, value)
        if not is_head:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not is_head:
            self.wfile.write(content[: len(content) // 2] if fault == "half_answer" else content)
        if fault == "half_answer":
            self._cut()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer_error(self, status: int, code: str, text: str) -> None:
        body = "" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>{text}</Message></Error>"
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
