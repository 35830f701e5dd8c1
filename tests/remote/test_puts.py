"""Objects that are put into Google's store and the hub: over nothing that was not seen, or many in one commit."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from batchcap.remote import listing, puts
from batchcap.remote.attempts import ChangedError
from batchcap.remote.objects import Look, look
from tests import gcs
from tests.stores import forget_connections, wait_no_longer


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[gcs.Cloud]:
    """Google's store, to which the surroundings lead."""
    with gcs.opened() as cloud:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        forget_connections()
        wait_no_longer(monkeypatch)
        yield cloud
    forget_connections()


def test_googles_store(cloud: gcs.Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"from a file")
    address = f"gs://{gcs.BUCKET}/a"
    first = puts.put(puts.Put(f"{address}/1", b"one", None))
    puts.put(puts.Put(f"{address}/2", tmp_path / "x", None))
    assert first == look(f"{address}/1").version
    with pytest.raises(ChangedError):
        puts.put(puts.Put(f"{address}/1", b"other", None))
    assert puts.put(puts.Put(f"{address}/1", b"new", first)) != first
    assert {name: content for name, (content, _number) in cloud.objects.items()} == {
        "a/1": b"new",
        "a/2": b"from a file",
    }
    cloud.put("a/b/3", b"")
    monkeypatch.setattr(listing, "_PAGE", 1)
    entries = {one.name: one.look for one in listing.listing(address)}
    assert entries == {"1": look(f"{address}/1"), "2": look(f"{address}/2"), "b": None}
    assert cloud.pages >= 3
    puts.remove([f"{address}/1"])
    assert sorted(cloud.objects) == ["a/2", "a/b/3"]
    with pytest.raises(FileNotFoundError):
        list(listing.listing("gs://nobodys-bucket/a"))


def test_the_hub_gets_one_commit_for_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"two")
    commits: list[tuple[str, list[tuple[str, object]], dict[str, Any]]] = []

    def create_commit(_api: object, repo_id: str, operations: list[Any], **known: Any) -> None:
        of = [(one.path_in_repo, getattr(one, "path_or_fileobj", None)) for one in operations]
        commits.append((repo_id, of, known))

    def resolved(address: str) -> SimpleNamespace:
        path = address.removeprefix("hf://datasets/me/birds/")
        return SimpleNamespace(repo_id="me/birds", repo_type="dataset", revision="main", path_in_repo=path)

    files = SimpleNamespace(resolve_path=resolved, endpoint=None, token="t", invalidate_cache=lambda: None)
    monkeypatch.setattr(puts, "filesystem", lambda _address: files)
    monkeypatch.setattr(puts, "look", lambda address: Look(1, f"version of {address[-1]}"))
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    address = "hf://datasets/me/birds/data"
    assert puts.goes_together(address)
    several = [puts.Put(f"{address}/1", b"one", None), puts.Put(f"{address}/2", tmp_path / "x", None)]
    assert puts.put_together(several) == ["version of 1", "version of 2"]
    puts.remove([f"{address}/1", f"{address}/2"])
    put, removed = commits
    assert put[:2] == ("me/birds", [("data/1", b"one"), ("data/2", str(tmp_path / "x"))])
    assert put[2] == {
        "repo_type": "dataset", "revision": "main", "commit_message": "Add 2 files with batchcap"
    }  # fmt: skip
    assert removed[1] == [("data/1", None), ("data/2", None)]
