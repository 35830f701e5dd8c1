"""A checkpoint by its hub name: what is asked for, what is said about this machine, and what happens without a network.

The hub is a server on this machine that writes down every request.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NAME, COMMIT = "someone/tiny-model", "c" * 40
SECRET = "hf_secretsecretsecretsecretsecretsecret"
# What a request needs; anything else says more.
NEEDED_HEADERS = {"host", "accept", "accept-encoding", "connection", "user-agent", "range"}
LEFT_OUT = {"README.md": "a model", "pytorch_model.bin": "pickled", "original/params.pth": "pickled"}


@dataclass
class Hub:
    """A hub that has one checkpoint.

    Attributes:
        files: content by path.
        endpoint: its address.
        requests: method, path and headers of each request, in order.
        hangs_up: whether it ends every connection without an answer.
    """

    files: dict[str, bytes]
    endpoint: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    hangs_up: bool = False

    def answer(self, path: str) -> tuple[bytes, str]:
        """The content at a path without its query, and its type."""
        if path == f"/api/models/{NAME}/revision/main":
            listing = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            return json.dumps(listing).encode(), "application/json"
        if path == f"/api/models/{NAME}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return json.dumps(entries).encode(), "application/json"
        return self.files[path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")], "application/octet-stream"


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in sorted(tiny_checkpoint.iterdir())}
    hub = Hub({**files, **{name: content.encode() for name, content in LEFT_OUT.items()}})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
            if hub.hangs_up:
                self.close_connection = True
                return
            try:
                content, kind = hub.answer(path)
            except KeyError:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 - the server's name for it

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # looks for its end so often
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()


def in_new_home(home: Path, code: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python code as somebody who is logged in to the hub, with nothing of these tests in the environment."""
    (home / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
    (home / ".cache" / "huggingface" / "token").write_text(SECRET)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "HF_TOKEN": SECRET, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def export(home: Path, *options: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    code = "from batchcap.cli import main; main()"
    words = ("export", NAME, "--output", home / "bundle", "--context", "256", *options)
    return in_new_home(home, code, *words, **environment)


FETCH = f"from batchcap.export.hub import fetch; print(fetch({NAME!r}))"


def test_an_export_asks_for_the_files_of_the_checkpoint_and_says_nothing(hub: Hub, tmp_path: Path) -> None:
    done = export(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert "asking the Hugging Face hub for the files of that checkpoint" in done.stderr
    wanted = {f"/{NAME}/resolve/{COMMIT}/{name}" for name in hub.files if name not in LEFT_OUT}
    listings = {f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/tree/{COMMIT}"}
    assert {path for _method, path, _headers in hub.requests} == wanted | listings
    assert {method for method, _path, _headers in hub.requests} == {"GET", "HEAD"}
    for method, path, headers in hub.requests:
        assert headers.keys() <= NEEDED_HEADERS, (method, path, headers)
        assert headers["user-agent"] == "batchcap"
        assert SECRET not in str(headers)
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["source"]["name"] == NAME


def test_a_request_says_more_without_the_owner(hub: Hub, tmp_path: Path) -> None:
    """What the test above looks for is there when huggingface-hub is left to itself."""
    code = f"from huggingface_hub import snapshot_download; snapshot_download({NAME!r})"
    done = in_new_home(tmp_path, code, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert any(SECRET in str(headers) for _method, _path, headers in hub.requests)
    assert any(headers.keys() - NEEDED_HEADERS for _method, _path, headers in hub.requests)
    assert "/api/agent-harnesses" in {path for _method, path, _headers in hub.requests}


@pytest.mark.parametrize("wish", [{}, {"HF_HUB_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "yes"}])
def test_a_snapshot_in_the_cache_needs_no_network(hub: Hub, tmp_path: Path, wish: dict[str, str]) -> None:
    first = in_new_home(tmp_path, FETCH, HF_ENDPOINT=hub.endpoint)
    again = in_new_home(tmp_path, FETCH, HF_ENDPOINT="http://127.0.0.1:1", **wish)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_nobody_is_asked_where_the_caller_is_offline(hub: Hub, tmp_path: Path) -> None:
    done = export(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in done.stderr


def test_without_a_hub_the_message_says_what_to_do(tmp_path: Path) -> None:
    done = export(tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.partition("batchcap: error: ")[2]
    assert f"there is no folder {NAME}, and it can't be downloaded from the hub" in message
    assert "download the checkpoint on a machine with a network" in message
    assert f"hf download {NAME} --local-dir FOLDER" in message
    assert "give its folder" in message


def test_a_hub_that_hangs_up(hub: Hub, tmp_path: Path) -> None:
    hub.hangs_up = True
    done = export(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 2, done.stderr
    assert f"there is no folder {NAME}, and it can't be downloaded from the hub" in done.stderr


def test_the_hub_is_closed_again_after_a_download(hub: Hub, tmp_path: Path) -> None:
    code = f"{FETCH}; from huggingface_hub import model_info; model_info('someone/else')"
    done = in_new_home(tmp_path, code, HF_ENDPOINT=hub.endpoint)
    assert "batchcap does not ask the network for" in done.stderr
    assert not any("someone/else" in path for _method, path, _headers in hub.requests)


def test_a_name_that_the_hub_refuses(tmp_path: Path) -> None:
    code = "from batchcap.export.hub import fetch; fetch('some--one/model')"
    assert "CheckpointError: there is no folder some--one/model" in in_new_home(tmp_path, code).stderr


def test_an_incomplete_snapshot_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    folder = Path(in_new_home(tmp_path, FETCH, HF_ENDPOINT=hub.endpoint).stdout.strip())
    (folder / "model.safetensors").unlink()
    shutil.rmtree(folder.parents[1] / "blobs")
    done = export(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "not complete in the hub's cache" in done.stderr
