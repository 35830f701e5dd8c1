"""Google Cloud Storage and the Hugging Face hub, as their stand-ins answer: what is read, asked and said."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcap.remote.attempts import ChangedError
from batchcap.remote.listing import listing
from batchcap.remote.objects import look, read_range, read_whole
from tests import gcs, hub
from tests.stores import forget_connections, wait_no_longer

DIGITS = b"0123456789" * 20


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[gcs.Cloud]:
    """A bucket at Google."""
    with gcs.opened() as cloud:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
        forget_connections()
        wait_no_longer(monkeypatch)
        yield cloud
    forget_connections()


def test_google(cloud: gcs.Cloud) -> None:
    cloud.put("x/a", DIGITS)
    cloud.put("x/y/b", b"1")
    folder = f"gs://{gcs.BUCKET}/x"
    seen = look(f"{folder}/a")
    assert (seen.size_bytes, seen.version) == (200, str(cloud.objects["x/a"][1]))
    assert {entry.name: entry.look for entry in listing(folder)} == {"a": seen, "y": None}
    assert read_range(f"{folder}/a", 3, 4, seen.version) == b"3456"
    assert read_range(f"{folder}/a", 300, 4, seen.version) == b""
    assert read_whole(f"{folder}/a", 50) == DIGITS[:51]
    cloud.put("x/a", DIGITS)
    with pytest.raises(ChangedError):
        read_range(f"{folder}/a", 3, 4, seen.version)
    with pytest.raises(FileNotFoundError):
        look(f"{folder}/nothing")


def test_the_hub(tmp_path: Path) -> None:
    """In a process of its own: the endpoint is read when the library is loaded."""
    code = """
import batchcap, json, sys
from batchcap.core.offline import faults
from batchcap.remote.listing import listing
from batchcap.remote.objects import look, read_range, read_whole
address = "hf://datasets/me/pics/data/a.parquet"
seen = look(address)
found = {entry.name: entry.look and entry.look.size_bytes for entry in listing("hf://datasets/me/pics/data")}
parts = [read_range(address, 3, 4, seen.version).decode(), len(read_whole(address, 50))]
try:
    look("hf://datasets/you/pics/a")
except FileNotFoundError as error:
    parts.append(error.strerror)
print(json.dumps([seen.size_bytes, bool(seen.version), found, parts, faults()]))
"""
    with hub.opened() as (datasets, url):
        datasets.files["me/pics/data/a.parquet"] = DIGITS
        datasets.files["me/pics/data/split=x/b"] = b"1"
        surroundings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_ENDPOINT": url, "HF_TOKEN": "hf_secret"}
        ran = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
        assert json.loads(ran.stdout) == [
            200,
            True,
            {"a.parquet": 200, "split=x": None},
            ["3456", 51, "there is nothing at this address"],
            [],
        ]
        assert datasets.requests
        for _path, headers in datasets.requests:
            assert headers["user-agent"] == "batchcap"
            assert headers["authorization"] == "Bearer hf_secret", "private datasets are read as their owner"
        shut = {**surroundings, "HF_HUB_OFFLINE": "1"}
        before = len(datasets.requests)
        ran = subprocess.run([sys.executable, "-c", code], env=shut, capture_output=True, text=True, check=False)
        assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in ran.stderr
        assert len(datasets.requests) == before
