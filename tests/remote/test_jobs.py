"""Whole jobs with inputs at addresses: the same rows as from a disk, changes, outages; nothing without the option."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig, JobConfig, OnChanged, PlacementConfig, ResumeConfig
from batchcap.core.errors import ChangedInputError, RowError, UsageError
from batchcap.core.records import Caption, Failure, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.inputs.encoded import read_image
from batchcap.job import run as job
from batchcap.job.outage import MANY
from batchcap.job.run import run_job
from batchcap.remote.attempts import NetworkError
from batchcap.store.folder import JobFolder
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.inputs.archives import tar_bytes, zip_bytes
from tests.stores import Bucket, FaultyBucket
from tests.web import Web

IMAGES = {f"{number}.png": f"image {number}".encode() * (number + 1) for number in range(5)}


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "cache"))


def seen(request: Request) -> Outcome:
    """The caption of an image is its digest."""
    try:
        image = read_image(request.row)
    except RowError as error:
        return Outcome(request, Failure(request.index, error.kind, error.message))
    caption = Caption(request.index, (1,), image.sha256, FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 5.0)
    return Outcome(request, (caption,), ImageFacts(1, 1, image.sha256, image.read_ms, 2.0))


def caption(config: JobConfig) -> list[int]:
    """Run a job; the rows that were captioned."""
    engine = FakeEngine(end=seen)
    run_job(config, SilentProgress(), lambda _config: engine)
    return engine.submitted


def rows_of(config: JobConfig) -> list[dict[str, Any]]:
    parts = JobFolder(Path(config.output)).part_paths()
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(path) for path in parts]).to_pylist()
    return rows


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same wherever the inputs lie."""
    times = {"source", "read_ms", "vision_ms", "prefill_ms", "decode_ms", "error_message"}
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def job_of(tmp_path: Path, *inputs: str, name: str = "out", **more: Any) -> JobConfig:
    given = InputConfig(inputs, allow_remote=any("://" in one for one in inputs) or more.pop("allow", False), **more)
    return JobConfig(given, str(tmp_path / name), placement=PlacementConfig(rows_per_part=2))


def put_folder(bucket: Bucket, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Inputs of every kind."""
    folder = tmp_path / "data"
    for below in ("images/split=a", "images/split=b", "described", "saved", ".hidden"):
        (folder / below).mkdir(parents=True)
    for number, (name, content) in enumerate(IMAGES.items()):
        (folder / "images" / ("split=a" if number % 2 else "split=b") / name).write_bytes(content)
        (folder / "described" / name).write_bytes(content)
    (folder / "images/split=a/1.txt").write_text("a text")
    (folder / ".hidden/x.png").write_bytes(b"x")
    (folder / "images/notes.doc").write_bytes(b"x")
    described = [{"file_name": name, "n": number} for number, name in enumerate(IMAGES)]
    (folder / "described/metadata.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in described))
    paths = pa.table({"image": [f"described/{name}" for name in IMAGES], "n": list(range(len(IMAGES)))})
    pq.write_table(paths, folder / "paths.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": list(IMAGES.values())}), folder / "cells.parquet", row_group_size=2)
    (folder / "paths.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in paths.to_pylist()))
    pyarrow.csv.write_csv(paths, folder / "paths.csv")
    with pa.ipc.new_file(folder / "paths.arrow", paths.schema) as writer:
        writer.write_table(paths, max_chunksize=2)
    cells = pa.table({"image": list(IMAGES.values()), "n": list(range(len(IMAGES)))})
    with pa.ipc.new_stream(folder / "saved/data-00000-of-00001.arrow", cells.schema) as stream:
        stream.write_table(cells)
    (folder / "saved/state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    members = {"0.png": IMAGES["0.png"], "1.png": IMAGES["1.png"], "1.txt": b"a text", **IMAGES}
    for name in ("a.tar", "s-0.tar", "s-1.tar"):
        (folder / name).write_bytes(tar_bytes(members))
    (folder / "a.tar.gz").write_bytes(gzip.compress(tar_bytes(members)))
    (folder / "a.zip").write_bytes(zip_bytes(members))
    return folder


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("images", {"keep_columns": ("split", "txt")}),
        ("images/**/[1-3].p*", {}),
        ("images/split=a/1.png", {}),
        ("described", {"keep_columns": ("n",)}),
        ("paths.parquet", {"keep_columns": ("n",)}),
        ("cells.parquet", {"where": None}),
        ("*s.parquet", {}),
        ("paths.jsonl", {"keep_columns": ("n",), "where": "n > 1"}),
        ("paths.csv", {"id_column": "n", "sample": 3}),
        ("paths.arrow", {"keep_columns": ("*",)}),
        ("a.tar", {"keep_columns": ("*",)}),
        ("a.tar.gz", {"keep_columns": ("txt",)}),
        ("s-{0..1}.tar", {}),
        ("a.zip", {"keep_columns": ("txt",), "shard": "2/2"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_same_rows_as_from_a_disk(
    tmp_path: Path, data: Path, bucket: Bucket, name: str, more: dict[str, Any]
) -> None:
    put_folder(bucket, data)
    here = job_of(tmp_path, str(data / name), name="here", **more)
    there = job_of(tmp_path, f"{bucket.address}/{name}", name="there", **more)
    assert caption(here) == caption(there)
    rows = rows_of(there)
    assert told(rows) == told(rows_of(here))
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["source"].startswith(f"{bucket.address}/") for row in rows)
    assert caption(there) == [], "all of it is done"


def test_a_saved_dataset_in_a_folder(tmp_path: Path, data: Path, bucket: Bucket) -> None:
    put_folder(bucket, data)
    config = job_of(tmp_path, f"{bucket.address}/saved", keep_columns=("n",))
    caption(config)
    assert [row["n"] for row in rows_of(config)] == list(range(5))


def test_a_run_that_was_ended_goes_on(tmp_path: Path, data: Path, bucket: Bucket) -> None:
    put_folder(bucket, data)
    config = job_of(tmp_path, *(f"{bucket.address}/{name}" for name in ("a.tar", "paths.jsonl", "images")))
    engine = FakeEngine(end=seen, room=2, dies_after=7)
    with pytest.raises(Exception, match="was killed"):
        run_job(config, SilentProgress(), lambda _config: engine)
    rest = caption(config)
    assert 0 < len(rest) < 15
    assert len(rows_of(config)) == 15
    whole = replace(config, output=str(tmp_path / "whole"))
    caption(whole)
    assert told(rows_of(config)) == told(rows_of(whole))


def test_manifests_here_name_images_there(tmp_path: Path, data: Path, bucket: Bucket, web: Web) -> None:
    put_folder(bucket, data)
    web.files["/a.png"] = b"from the web"
    cells = [
        f"{bucket.address}/described/1.png",
        f"{web.url}/a.png?secret=1",
        f"{web.url}/moved",
        f"{web.url}/nothing.png?secret=1",
        str(data / "described/2.png"),
        "ftp://host/a.png",
    ]
    pq.write_table(pa.table({"image": cells}), tmp_path / "m.parquet")
    config = job_of(tmp_path, str(tmp_path / "m.parquet"), allow=True)
    caption(config)
    rows = rows_of(config)
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed", "ok", "failed"]
    assert [rows[3]["error_kind"], rows[5]["error_kind"]] == ["missing", "refused"]
    assert "secret" not in repr(rows)
    shut = job_of(tmp_path, str(tmp_path / "m.parquet"), name="shut")
    before = web.requests.total()
    caption(shut)
    assert [row["error_kind"] for row in rows_of(shut)] == [*["refused"] * 4, None, "refused"]
    assert web.requests.total() == before


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("1.png", None),
        ("sub\\2.png", None),
        ("../outside.png", "refused"),
        ("x/../../outside.png", "refused"),
        ("%2e%2e/outside.png", "refused"),
        ("ROOT/1.png", None),
        ("ROOT/../outside.png", "refused"),
        ("BUCKET/outside.png", "refused"),
        ("/etc/passwd", "refused"),
    ],
)
def test_an_image_root_at_an_address(tmp_path: Path, bucket: Bucket, cell: str, kind: str | None) -> None:
    for key in ("root/1.png", "root/sub/2.png", "outside.png"):
        bucket.put(key, key.encode())
    cell = cell.replace("ROOT", f"{bucket.address}/root").replace("BUCKET", bucket.address)
    pq.write_table(pa.table({"image": [cell]}), tmp_path / "m.parquet")
    config = job_of(tmp_path, str(tmp_path / "m.parquet"), allow=True, image_root=f"{bucket.address}/root/")
    caption(config)
    assert [row["error_kind"] for row in rows_of(config)] == [kind]


@pytest.mark.parametrize("cell", ["/etc/hostname", "file:///etc/hostname"])
def test_a_manifest_at_an_address_names_no_file_of_this_machine(tmp_path: Path, bucket: Bucket, cell: str) -> None:
    """Its owner is not the owner of this machine."""
    bucket.put("m.jsonl", json.dumps({"image": cell}).encode())
    config = job_of(tmp_path, f"{bucket.address}/m.jsonl")
    caption(config)
    (row,) = rows_of(config)
    assert row["error_kind"] == "refused"
    assert "is a path of this machine, and the manifest is not on it" in row["error_message"]


def test_web_servers_have_no_patterns(tmp_path: Path, web: Web) -> None:
    with pytest.raises(UsageError, match="web servers have no lists of their files"):
        caption(job_of(tmp_path, f"{web.url}/*.png"))
    assert not web.requests


def test_what_changed_between_runs(tmp_path: Path, data: Path, bucket: Bucket) -> None:
    put_folder(bucket, data)
    config = job_of(tmp_path, f"{bucket.address}/described", f"{bucket.address}/a.tar", f"{bucket.address}/paths.jsonl")
    caption(config)
    bucket.put("a.tar", (data / "a.tar").read_bytes())
    assert caption(config) == [], "the same bytes"
    bucket.put("described/2.png", b"other")
    with pytest.raises(ChangedInputError, match=rf"{bucket.address}/described/2.png.* changed"):
        caption(config)
    again = replace(config, resume=ResumeConfig(on_changed=OnChanged.RECAPTION))
    assert caption(again) == [2]
    members = {"0.png": IMAGES["0.png"], "1.png": IMAGES["1.png"], "1.txt": b"a text", **IMAGES}
    bucket.put("a.tar", tar_bytes({**members, "5.png": b"new"}))
    assert caption(config) == [15], "it has grown"
    bucket.put("a.tar", tar_bytes({**members, "0.png": b"other", "5.png": b"new"}))
    with pytest.raises(ChangedInputError, match="row 0"):
        caption(config)


def test_an_archive_that_changes_during_a_run(tmp_path: Path, data: Path, bucket: Bucket) -> None:
    put_folder(bucket, data)
    config = job_of(tmp_path, f"{bucket.address}/a.tar")

    def change_archive(request: Request) -> Outcome:
        if request.index == 1:
            bucket.put("a.tar", tar_bytes(dict.fromkeys(IMAGES, b"other" * 1000)))
        return seen(request)

    run_job(config, SilentProgress(), lambda _config: FakeEngine(end=change_archive, room=1))
    rows = rows_of(config)
    assert [row["status"] for row in rows] == ["ok", *["failed"] * 4], "never an image of another version"
    assert all("has changed since it was looked at" in row["error_message"] for row in rows[1:])


def test_an_outage_ends_the_run_and_its_rows_are_left(
    tmp_path: Path, faulty: FaultyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchcap.remote.attempts.ATTEMPTS", 2)
    monkeypatch.setattr("batchcap.job.outage.MANY", many := 6)
    for number in range(many + 10):
        faulty.bucket.put(f"{number:02}.png", b"%d" % number)
    config = job_of(tmp_path, faulty.bucket.address)

    def gone(request: Request) -> Outcome:
        if request.index == 4:
            faulty.way.happens("slow_down", times=0, method="GET", part=".png")
        return seen(request)

    with pytest.raises(NetworkError, match=f"{many} images in a row could not be fetched; their rows are left"):
        run_job(config, SilentProgress(), lambda _config: FakeEngine(end=gone, room=1))
    assert json.loads(JobFolder(Path(config.output)).summary_path.read_text())["exit_code"] == 75
    faulty.way.heals()
    assert caption(config) == list(range(4, many + 10))
    assert {row["status"] for row in rows_of(config)} == {"ok"}


def test_one_dead_server_ends_no_run(tmp_path: Path, web: Web) -> None:
    web.files["/a.png"] = b"a"
    dead = "http://127.0.0.1:9/a.png"
    pq.write_table(pa.table({"image": [*[dead] * (MANY + 5), f"{web.url}/a.png"]}), tmp_path / "m.parquet")
    config = job_of(tmp_path, str(tmp_path / "m.parquet"), allow=True)
    caption(config)
    assert [row["error_kind"] for row in rows_of(config)] == [*["network"] * (MANY + 5), None]


@pytest.mark.parametrize("name", ["", "/a.tar", "/*.png", "/paths.parquet"])
def test_inputs_that_can_not_be_had(tmp_path: Path, faulty: FaultyBucket, name: str) -> None:
    faulty.bucket.put("a.tar", b"")
    faulty.bucket.put("paths.parquet", b"")
    for fault, error, message in (
        ("refuse", UsageError, "access is denied|credentials"),
        ("slow_down", NetworkError, "check the network"),
    ):
        for method in ("GET", "HEAD"):
            faulty.way.happens(fault, times=0, method=method)  # type: ignore[arg-type]
        with pytest.raises(error, match=message):
            caption(job_of(tmp_path, f"{faulty.bucket.address}{name}"))
        faulty.way.heals()
    assert not (tmp_path / "out").exists() or not JobFolder(tmp_path / "out").part_paths()


@pytest.mark.parametrize("name", ["", "/nothing", "/nothing/*.png", "/x.parquet"])
def test_nothing_there(tmp_path: Path, bucket: Bucket, name: str) -> None:
    with pytest.raises(UsageError, match=r"there is nothing at this address|no image"):
        caption(job_of(tmp_path, f"{bucket.address}{name}"))


def test_tables_on_a_web_server(tmp_path: Path, data: Path, web: Web) -> None:
    for name in ("cells.parquet", "a.tar", "a.zip"):
        web.files[f"/{name}"] = (data / name).read_bytes()
    config = job_of(tmp_path, f"{web.url}/cells.parquet?secret=1", f"{web.url}/a.tar", f"{web.url}/a.zip")
    caption(config)
    rows = rows_of(config)
    assert [row["status"] for row in rows] == ["ok"] * 15
    assert rows[0]["id"] == "cells.parquet:0"
    assert "secret" not in repr(rows)
    assert {path for _method, path in web.requests} == {"/cells.parquet", "/a.tar", "/a.zip"}, "nothing nobody named"


def test_a_delta_lake_table_at_an_address_is_refused(tmp_path: Path, data: Path, bucket: Bucket) -> None:
    bucket.put("lake/_delta_log/00000000000000000000.json", b"{}")
    bucket.put("lake/day=1/a.parquet", (data / "cells.parquet").read_bytes())
    with pytest.raises(UsageError, match=rf"{bucket.address}/lake is a Delta Lake table"):
        caption(job_of(tmp_path, f"{bucket.address}/lake"))


def test_without_addresses_nothing_that_fetches_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    code = (
        "import sys; from batchcap.config import InputConfig; from pathlib import Path\n"
        "from batchcap.inputs.discover import discover; from batchcap.inputs.registry import open_readers\n"
        "import batchcap.job.run\n"
        f"list(discover(InputConfig(({str(tmp_path)!r},), allow_remote=True), Path('/nowhere')))\n"
        "print({'fsspec', 's3fs', 'aiohttp', 'gcsfs', 'huggingface_hub'} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout == "set()\n"
