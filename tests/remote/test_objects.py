"""What is asked of servers, and what becomes of what they answer: ranges of one version, attempts, words for errors."""

import os
import socket
import tracemalloc
from pathlib import Path

import pytest

from batchcap.core.address import address_of, canonical, is_remote, path_of, without_query
from batchcap.core.errors import ExitCode, UsageError
from batchcap.inputs.remote_walk import RemoteWalk
from batchcap.inputs.walk import Walk
from batchcap.remote import attempts, protocols
from batchcap.remote.attempts import ChangedError, NetworkError
from batchcap.remote.file import open_remote
from batchcap.remote.listing import listing
from batchcap.remote.objects import look, read_range, read_whole
from tests.stores import Bucket, FaultyBucket
from tests.web import Web

NOISE = os.urandom(300_000)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("S3://bucket/a/", "s3://bucket/a"),
        ("https://host/a.parquet?x=1&y=a//b", "https://host/a.parquet?x=1&y=a%2F%2Fb"),
        ("hf://datasets/a/b@main/data/split=train/x.parquet", "hf://datasets/a/b@main/data/split=train/x.parquet"),
        ("s3://bucket/a?b#c", "s3://bucket/a?b#c"),
    ],
)
def test_an_address_is_kept_as_a_path(given: str, kept: str) -> None:
    assert is_remote(given)
    assert canonical(given) == kept
    path = path_of(kept)
    assert path is not None
    assert address_of(path) == address_of(str(path)) == kept
    assert address_of(path.parent / "b") == f"{kept.rpartition('/')[0]}/b"
    assert not path.is_absolute()


@pytest.mark.parametrize("address", ["s3://b/a//b", "s3://b/../c", "s3://b/a/.", "https://h/a/./b"])
def test_addresses_that_no_path_can_hold(address: str) -> None:
    assert path_of(address) is None


@pytest.mark.parametrize("name", ["s3:/b/a", "/s3:/b", "ftp://a/b", "file:///a", "s3://", "data:x", "memory://a"])
def test_what_is_no_address(name: str) -> None:
    assert not is_remote(name)


def test_a_range_of_one_version(bucket: Bucket) -> None:
    address = f"{bucket.address}/a"
    bucket.put("a", NOISE)
    seen = look(address)
    assert seen.size_bytes == len(NOISE)
    assert read_range(address, 7, 1000, seen.version) == NOISE[7:1007]
    assert read_range(address, len(NOISE) - 5, 1000, seen.version) == NOISE[-5:]
    assert read_range(address, len(NOISE), 5, seen.version) == b""
    bucket.put("a", NOISE[::-1])
    assert look(address).number != seen.number
    with pytest.raises(ChangedError, match="has changed since it was looked at"):
        read_range(address, 7, 1000, seen.version)
    assert read_range(address, 7, 1000, "") == NOISE[::-1][7:1007]


def test_a_whole_object_within_its_bound(bucket: Bucket) -> None:
    bucket.put("a", NOISE)
    bucket.put("empty", b"")
    assert read_whole(f"{bucket.address}/a", 10**6) == NOISE
    assert len(read_whole(f"{bucket.address}/a", 1000)) == 1001
    assert read_whole(f"{bucket.address}/empty", 1000) == b""


def test_listings(bucket: Bucket) -> None:
    for key in ("x/a", "x/b/c", "x/b/d", "y"):
        bucket.put(key, key.encode())
    found = {entry.name: entry.look and entry.look.size_bytes for entry in listing(f"{bucket.address}/x")}
    assert found == {"a": 3, "b": None}
    assert {entry.name for entry in listing(bucket.address)} == {"x", "y"}
    assert list(listing(f"{bucket.address}/y")) == list(listing(f"{bucket.address}/z")) == []


def test_listings_come_in_the_order_of_paths(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, as the folders of a disk are walked."""
    monkeypatch.setattr("batchcap.remote.listing._PAGE", 2)
    names = [
        "a.png",
        "a/x.png",
        "a-b.png",
        "a0.png",
        "a/b/c.png",
        "Z.png",
        "ä.png",
        "\U0001f600.png",
        "\uff5e.png",
        "b/d",
    ]
    for name in names:
        bucket.put(f"in/{name}", b"x")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    bucket.put("in/", b"")
    here = list(Walk("").below(str(tmp_path)))
    assert list(RemoteWalk().below(str(path_of(f"{bucket.address}/in")))) == here
    assert sorted(here) == sorted(names)


@pytest.mark.parametrize("fault", ["slow_down", "cut_request", "cut_answer", "half_answer"])
def test_what_fails_for_a_moment_is_asked_for_again(faulty: FaultyBucket, fault: str) -> None:
    faulty.bucket.put("a", NOISE)
    faulty.way.happens(fault, times=attempts.ATTEMPTS - 1, method="GET")  # type: ignore[arg-type]
    assert read_whole(f"{faulty.bucket.address}/a", 10**6) == NOISE
    assert faulty.way.count("GET") == attempts.ATTEMPTS, "attempts are counted in one place only"


@pytest.mark.parametrize("fault", ["slow_down", "half_answer"])
def test_what_never_comes_is_an_error_of_the_network(faulty: FaultyBucket, fault: str) -> None:
    faulty.bucket.put("a", NOISE)
    faulty.way.happens(fault, times=0, method="GET")  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match=r"could not be had in 6 attempts .* run the same command again") as caught:
        read_whole(f"{faulty.bucket.address}/a", 10**6)
    assert caught.value.exit_code is ExitCode.STOPPED_EARLY


def test_a_server_that_is_silent_is_asked_less_until_it_answers(faulty: FaultyBucket) -> None:
    address = f"{faulty.bucket.address}/a"
    faulty.bucket.put("a", NOISE)
    faulty.way.happens("slow_down", times=0, method="GET")
    for asked in (attempts.ATTEMPTS, attempts.ATTEMPTS_AT_SILENT, attempts.ATTEMPTS_AT_SILENT):
        before = faulty.way.count("GET")
        with pytest.raises(NetworkError):
            read_whole(address, 10)
        assert faulty.way.count("GET") - before == asked
    faulty.way.heals()
    read_whole(address, 10)
    faulty.way.happens("slow_down", times=attempts.ATTEMPTS - 1, method="GET")
    read_whole(address, 10)


def test_wrong_credentials_are_told_at_once(faulty: FaultyBucket) -> None:
    faulty.way.happens("refuse", times=0, method="GET")
    with pytest.raises(PermissionError, match=r"access is denied.*credentials are missing or wrong.*AWS"):
        read_whole(f"{faulty.bucket.address}/a", 10)
    assert faulty.way.count("GET") == 1


def test_nobody_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(NetworkError, match="check the network"):
            look(f"{bucket.address}/a")


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the ranges that files ask for, which are small here."""
    monkeypatch.setattr("batchcap.remote.file._FIRST_BYTES", 1000)
    monkeypatch.setattr("batchcap.remote.file._MOST_BYTES", 8000)
    asked: list[int] = []

    def counted(address: str, start: int, size: int, version: str) -> bytes:
        asked.append(size)
        return read_range(address, start, size, version)

    monkeypatch.setattr("batchcap.remote.file.read_range", counted)
    return asked


def test_a_file_object_reads_as_a_file_does(bucket: Bucket, tmp_path: Path, sizes: list[int]) -> None:
    bucket.put("a", NOISE)
    (tmp_path / "a").write_bytes(NOISE)
    with open_remote(f"{bucket.address}/a") as remote, (tmp_path / "a").open("rb") as local:
        for offset, whence, size in [
            (0, 0, 10),
            (5, 1, 2000),
            (-700, 2, 9000),
            (100, 0, 50_000),
            (0, 2, 1),
            (9, 0, -1),
        ]:
            assert remote.seek(offset, whence) == local.seek(offset, whence)
            assert remote.read(size) == local.read(size)
            assert remote.tell() == local.tell()
        sizes.clear()
        remote.seek(200_000)
        assert b"".join(iter(lambda: remote.read(100), b"")) == NOISE[200_000:]
    assert len(sizes) < 30, "who reads on gets more and more at once"
    assert max(sizes) <= 8000
    for step, most in ((1500, 60), (20_000, 16)):
        with open_remote(f"{bucket.address}/a") as remote:
            sizes.clear()
            for place in range(0, len(NOISE), step):
                remote.seek(place)
                assert remote.read(10) == NOISE[place : place + 10]
        assert len(sizes) <= most
        assert sum(sizes) <= len(NOISE) + 20_000, "who jumps far does not read what is between"


def test_readers_of_one_file_share_what_was_read(bucket: Bucket, sizes: list[int]) -> None:
    """Rows are read ahead of their columns, and an index looks at what was read a moment ago."""
    bucket.put("a", NOISE)
    seen = look(f"{bucket.address}/a")
    for place in range(0, 200_000, 100):
        for behind in (0, 300, 90_000):
            if place >= behind:
                with open_remote(f"{bucket.address}/a", seen) as file:
                    file.seek(place - behind)
                    assert file.read(100) == NOISE[place - behind :][:100]
    assert sum(sizes) < 200_000 + 110_000 + 30_000
    assert len(sizes) < 60


def test_a_file_that_changes_while_it_is_read(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.remote.file._FIRST_BYTES", 1000)
    bucket.put("a", NOISE)
    with open_remote(f"{bucket.address}/a") as file:
        assert file.read(100) == NOISE[:100]
        bucket.put("a", NOISE[::-1])
        file.seek(200_000)
        with pytest.raises(ChangedError):
            file.read(100)


def test_web_servers(web: Web) -> None:
    address = f"{web.url}/a"
    web.files["/a"] = NOISE
    seen = look(address)
    assert read_range(address, 5, 1000, seen.version) == NOISE[5:1005]
    web.cuts = 2
    assert read_whole(address, 10**6) == NOISE
    assert web.cuts == 0
    web.status["/a"] = [503, 429, 500]
    assert len(read_whole(address, 1000)) == 1001
    web.files["/a"] = NOISE[::-1]
    with pytest.raises(ChangedError):
        read_range(address, 5, 1000, seen.version)
    with pytest.raises(FileNotFoundError, match="there is nothing at this address"):
        read_whole(f"{web.url}/b", 10)
    for status, error in ((403, PermissionError), (401, PermissionError), (400, OSError), (410, FileNotFoundError)):
        before = web.requests["GET", "/a"]
        web.status["/a"] = [status]
        with pytest.raises(error):
            read_whole(address, 10)
        assert web.requests["GET", "/a"] == before + 1, "this does not pass"
    assert list(listing(web.url)) == []
    assert {headers["User-Agent"] for headers in web.headers} == {"batchcap"}


@pytest.mark.parametrize("marks", ['W/"', None])
def test_versions_that_can_not_be_asked_for(web: Web, marks: str | None) -> None:
    web.marks = marks
    web.files["/a"] = NOISE
    seen = look(f"{web.url}/a")
    assert bool(seen.version) == bool(marks) == bool(seen.number)
    web.files["/a"] = NOISE[::-1]
    assert read_range(f"{web.url}/a", 5, 10, seen.version) == NOISE[::-1][5:15]


def test_a_server_without_ranges(web: Web) -> None:
    web.ranges = False
    web.files["/a"] = NOISE
    with pytest.raises(UsageError, match="does not give parts of files"):
        read_range(f"{web.url}/a", 5, 10, "")
    assert web.requests["GET", "/a"] == 1  # asking again would not help
    with pytest.raises(UsageError, match="download it, and give the file"):
        open_remote(f"{web.url}/a")
    web.files["/endless"] = b"x" * (64 << 20)
    tracemalloc.start()
    with pytest.raises(UsageError, match="does not give parts of files"):
        read_range(f"{web.url}/endless", 5, 10, "")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20, "all of it is not read to find out"
    tracemalloc.stop()


def test_a_query_is_not_told(web: Web) -> None:
    assert without_query("https://host/a?secret=1") == "https://host/a"
    assert without_query("s3://bucket/a?b") == "s3://bucket/a?b"
    with pytest.raises(FileNotFoundError) as caught:
        read_whole(f"{web.url}/b?secret=1", 10)
    assert "secret" not in str(caught.value)
    web.files["/b"] = b""
    web.status["/b"] = [500] * attempts.ATTEMPTS
    with pytest.raises(NetworkError) as failed:
        read_whole(f"{web.url}/b?secret=1", 10)
    assert "secret" not in str(failed.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("no")

    known = protocols._KNOWN["s3"]
    monkeypatch.setitem(protocols._KNOWN, "s3", known._replace(open=fail))
    protocols._filesystem.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'batchcap\[s3\]'"):
        look("s3://bucket/a")


def test_the_hub_is_not_asked_where_somebody_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "hub_allowed", lambda: False)
    protocols._filesystem.cache_clear()
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        look("hf://datasets/a/b/c")
