"""Whole jobs of damaged inputs as targets: each planned row ends as one output row, and another run changes nothing."""

import base64
import csv
import gzip
import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import ImagesOf, InputConfig, JobConfig, LimitConfig, OutputsConfig, PlacementConfig
from batchcap.core.errors import BatchcapError, ExitCode, WorkerError
from batchcap.core.records import Caption, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.inputs.encoded import digest, read_encoded
from batchcap.job import run as job
from batchcap.job.run import run_job
from batchcap.outputs.convert import convert
from batchcap.store.folder import JobFolder
from batchcap.store.shard_state import look_at_shards
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.fuzz.target import Target
from tests.fuzz.targets import archive_members, delimited_seeds, jsonl_seeds, tar_seeds, zip_seeds
from tests.images.samples import encode, noise
from tests.inputs.archives import tar_bytes

IMAGES = ("a.png", "b.jpg", "sub/c.png")
PATHS = ["a.png", "sub/c.png", "./b.jpg", "sub\\c.png", "file:///nowhere/a.png", "https://x.example/a.png", ""]
FORMS = ("txt", "json", "xmp", "jsonl", "csv", "arrow", "imagefolder", "hf-parquet", "webdataset")
MOST_ROWS = 40


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of a job, one file of which is damaged.

    Attributes:
        name: the file, inside of the input folder.
        seeds: makes good contents of it.
        given: what the job is given, inside of the same folder.
        around: makes the other files.
        options: of the inputs, besides those that are drawn.
        where: a condition that some jobs have.
        put: puts the damaged content into the input folder, where it is not that of a file.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    given: str = ""
    around: Callable[[Path], None] = lambda _folder: None
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str | None = None
    put: Callable[[bytes, Path], None] | None = None


def captioned(request: Request) -> Outcome:
    """A caption that says what it is of."""
    sha256 = digest(read_encoded(request.row))
    text = f"{sha256[:8]} of {request.row.id}"
    caption = Caption(request.index, (1,), text, FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 5.0)
    return Outcome(request, (caption,), ImageFacts(64, 48, sha256, 1.0, 2.0))


def read_whole(inputs: Inputs) -> Callable[[bytes, Path], None]:
    """A target's `read`: a whole job, once more, and its captions in another form."""

    def read(content: bytes, path: Path) -> None:
        chance = random.Random(hashlib.sha256(content).digest())
        folder = path.with_name("job")
        shutil.rmtree(folder, ignore_errors=True)
        damaged = folder / "in" / inputs.name
        damaged.parent.mkdir(parents=True)
        for name in IMAGES:
            (folder / "in" / name).parent.mkdir(exist_ok=True)
            (folder / "in" / name).write_bytes(encode(noise(8, 8), "PNG") + name.encode())
        inputs.around(folder / "in")
        if inputs.put is None:
            damaged.write_bytes(content)
        else:
            inputs.put(content, folder / "in")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "load_bundle", lambda _model: fake_bundle())
            patch.setattr(job, "bundle_opens_thinking", lambda _bundle: False)
            if chance.random() < 0.5:
                patch.setenv("BATCHCAP_CACHE", str(folder / "cache"))
            run_whole(drawn_job(inputs, folder, chance), chance)

    return read


def drawn_job(inputs: Inputs, folder: Path, chance: random.Random) -> JobConfig:
    """The job, with some of the options that decide which rows there are."""
    words: dict[str, Any] = {"keep_columns": ("*",), "sample": chance.choice((0, 0, 3)), **inputs.options}
    if chance.random() < 0.3:
        words["where"] = inputs.where
    given = InputConfig((str(folder / "in" / inputs.given),), **words)
    return JobConfig(
        given,
        str(folder / "out"),
        limits=LimitConfig(limit=chance.choice((MOST_ROWS, MOST_ROWS, 2))),
        placement=PlacementConfig(rows_per_part=chance.choice((1, 3, 1000))),
    )


def run_whole(config: JobConfig, chance: random.Random) -> None:
    """Run a job, broken off before or not, and once more, and convert it.

    Raises:
        BatchcapError: it is refused, each time.
    """
    if chance.random() < 0.3:
        with suppress(WorkerError):
            run_once(config, dies_after=chance.randint(0, 2))
    try:
        code, _submitted = run_once(config)
    except BatchcapError as error:
        assert_refused_again(config, error)
        raise
    rows = assert_each_row_once(config)
    before = parts_of(config)
    assert run_once(config) == (code, []), "another run has done something"
    assert parts_of(config) == before
    where = Path(config.output).with_name("converted")
    form = chance.choice(FORMS)
    (written,) = convert(Path(config.output), [f"{form}:{where}"], OutputsConfig(full_names=True))
    assert written.changed == 0
    assert written.captions + written.collisions == sum(row["status"] == "ok" for row in rows)


def run_once(config: JobConfig, dies_after: int | None = None) -> tuple[int, list[int]]:
    """Exit code of a run, and the rows that the engine got."""
    engine = FakeEngine(end=captioned, dies_after=dies_after, reads_images=True)
    summary = run_job(config, SilentProgress(), lambda _config: engine)
    assert summary.exit_code in (ExitCode.COMPLETE, ExitCode.TOO_MANY_FAILURES), summary
    return int(summary.exit_code), engine.submitted


def assert_refused_again(config: JobConfig, first: BatchcapError) -> None:
    """What stops a run stops the next one in the same way."""
    assert first.exit_code is not ExitCode.UNEXPECTED, first
    with pytest.raises(BatchcapError) as again:
        run_once(config)
    assert again.value.exit_code == first.exit_code, f"{first}\nand then: {again.value}"


def assert_each_row_once(config: JobConfig) -> list[dict[str, Any]]:
    """Every planned row is one output row; gives them."""
    folder = JobFolder(Path(config.output))
    planned = sum(state.shard.rows for state in look_at_shards(folder))
    rows = [row for path in folder.part_paths() for row in own_columns(path)]
    assert len(rows) == planned
    assert len({(row["id"], row["source"], row["row"]) for row in rows}) == planned, "a row is there twice"
    for row in rows:
        assert (row["status"] == "ok") is (row["caption"] is not None) is (row["error_kind"] is None), row
        assert row["caption"] is None or row["caption"].partition(" of ")[0] == row["image_sha256"][:8], row
    return rows


def own_columns(path: Path) -> list[dict[str, Any]]:
    names = ["id", "source", "row", "status", "caption", "error_kind", "image_sha256"]
    rows: list[dict[str, Any]] = pq.read_table(path, columns=names).to_pylist()
    return rows


def parts_of(config: JobConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in JobFolder(Path(config.output)).part_paths()}


def cells() -> list[str]:
    """Cells of text in every form that an image may have in one."""
    image = encode(noise(8, 8), "PNG")
    text = base64.b64encode(image).decode()
    return [*PATHS, text, f"data:image/png;base64,{text}", "data:,%89PNG", text.replace("+", "-").replace("/", "_")]


def rows_of_text() -> list[dict[str, Any]]:
    return [{"image": cell, "key": f"é {row}", "n": row / 3, "tags": ["a"]} for row, cell in enumerate(cells())]


def jsonl_of_cells() -> list[bytes]:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows_of_text()]
    return ["\n".join(lines).encode(), "\n".join(lines).encode("utf-8-sig"), *jsonl_seeds()]


def lists_of_cells() -> list[bytes]:
    lists = [{"images": cells()[row : row + row % 4], "n": row} for row in range(8)]
    return ["\n".join(json.dumps(row) for row in [*lists, {"images": None}, {"images": []}]).encode()]


def delimited_of_cells(delimiter: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow(["image", "key", "n"])
        writer.writerows([row["image"], f'{row["key"]}"{delimiter}\n', row["n"]] for row in rows_of_text())
        found = [text.getvalue().encode(), text.getvalue().encode("utf-8-sig")]
        return found + (delimited_seeds() if delimiter == "," else [])

    return seeds


def tables() -> list[pa.Table]:
    """Tables with images of every type."""
    images = [b"one", None, b"two", b"three", b"one", b""]
    structs = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = (
        pa.array(images, pa.binary()),
        pa.array(images, pa.large_binary()),
        pa.array([None if one is None else {"bytes": one, "path": "x"} for one in images], structs),
        pa.array(["a.png", "b.jpg", None, "sub/c.png", "none.png", ""], pa.string()),
    )
    others = {"key": list("uvwxyz"), "tags": [[], None, ["a"], [], ["b", "c"], []]}
    return [pa.table({"image": column, **others}) for column in columns]


def list_tables() -> list[pa.Table]:
    """Tables with lists of images."""
    lists = [[b"one", b"two"], [], None, [b"three"], [None, b"one", b"four"]]
    names = [["a.png", "b.jpg"], [], None, ["none.png"], ["sub/c.png"]]
    kinds = (pa.list_(pa.binary()), pa.large_list(pa.large_binary()))
    found = [pa.table({"images": pa.array(lists, kind), "key": list("abcde")}) for kind in kinds]
    return [*found, pa.table({"images": pa.array(names, pa.list_(pa.string())), "key": list("abcde")})]


def arrow_bytes(table: pa.Table, *, is_stream: bool) -> bytes:
    buffer = io.BytesIO()
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return buffer.getvalue()


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=2, compression="none")
    return buffer.getvalue()


def arrow_seeds() -> list[bytes]:
    return [arrow_bytes(table, is_stream=is_stream) for table in tables() for is_stream in (False, True)]


def streams() -> list[bytes]:
    return [arrow_bytes(tables()[2], is_stream=True)]


def save_to_disk(folder: Path) -> None:
    """The other files of a dataset that `datasets` has saved."""
    shutil.rmtree(folder / "sub")
    for name in ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow"):
        (folder / name).write_bytes(streams()[0])
    (folder / "state.json").write_bytes(states()[0])


def states() -> list[bytes]:
    names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    return [json.dumps({"_data_files": names, "_fingerprint": "x", "_split": None}).encode()]


def metadata_rows() -> list[dict[str, Any]]:
    return [{"file_name": name, "text": f"of {name}", "n": number} for number, name in enumerate(("é.png", *IMAGES))]


def metadata_jsonl() -> list[bytes]:
    return [
        "\n".join(json.dumps(row, ensure_ascii=is_ascii) for row in metadata_rows()).encode() for is_ascii in (0, 1)
    ]


def metadata_csv() -> list[bytes]:
    lines = ["file_name,text,n", *(f'{row["file_name"]},"{row["text"]}",{row["n"]}' for row in metadata_rows())]
    return ["\n".join(lines).encode(), "\r\n".join(lines).encode("utf-8-sig")]


def metadata_parquet() -> list[bytes]:
    return [parquet_bytes(pa.Table.from_pylist(metadata_rows()))]


def texts() -> list[bytes]:
    return ["a téxt".encode(), b"\xef\xbb\xbfa", b'{"tags": ["a"], "n": 1}']


def beside(folder: Path) -> None:
    (folder / "a.json").write_text("{}")


def tgz_seeds() -> list[bytes]:
    return [gzip.compress(tar_bytes(archive_members()), mtime=0), *tar_seeds()[-2:]]


def names() -> list[bytes]:
    text = "a.png\nsub/b b.jpg\nk=v/é.png\nsplit=tr%C3%A9/test/c.webp\nk=v/label=%2F/d.PNG\n-e.png\n.f.jpg"
    return [text.encode(), text.encode("latin-1"), b"k=\xff/a.png\n\xff=\xfe/b.png"]


def put_names(content: bytes, folder: Path) -> None:
    """Images of damaged names."""
    for line in content.split(b"\n")[:12]:
        parts = [part for part in line.split(b"/") if part not in (b"", b".", b"..") and b"\0" not in part]
        with suppress(OSError):  # too long, or a folder and a file of one name
            path = folder.joinpath(*map(os.fsdecode, parts or [b"x.png"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(noise(8, 8), "PNG") + line)


EACH: dict[str, Any] = {"images": ImagesOf.EACH}
KINDS = {
    "tar": Inputs("x.tar", lambda: tar_seeds()[:-2], "x.tar"),
    "tgz": Inputs("x.tar.gz", tgz_seeds, "x.tar.gz"),
    "zip": Inputs("x.zip", zip_seeds, "x.zip"),
    "jsonl": Inputs("x.jsonl", jsonl_of_cells, "x.jsonl", where="n > 1 OR key LIKE '%3'"),
    "csv": Inputs("x.csv", delimited_of_cells(","), "x.csv", where="key IS NOT NULL"),
    "tsv": Inputs("x.tsv", delimited_of_cells("\t"), "x.tsv"),
    "arrow": Inputs("x.arrow", arrow_seeds, "x.arrow", where="key > 'v'"),
    "saved": Inputs("data-00000-of-00002.arrow", streams, around=save_to_disk),
    "state": Inputs("state.json", states, around=save_to_disk),
    "each": Inputs(
        "x.parquet", lambda: [parquet_bytes(one) for one in list_tables()], "x.parquet", options=EACH, where="key > 'b'"
    ),
    "each-arrow": Inputs(
        "x.arrow", lambda: [arrow_bytes(one, is_stream=True) for one in list_tables()], "x.arrow", options=EACH
    ),
    "each-jsonl": Inputs("x.jsonl", lists_of_cells, "x.jsonl", options=EACH, where="n > 2"),
    "folders": Inputs("split=a/n=1/x.parquet", lambda: [parquet_bytes(one) for one in tables()]),
    "metadata-jsonl": Inputs("metadata.jsonl", metadata_jsonl, where="n > 1"),
    "metadata-csv": Inputs("metadata.csv", metadata_csv),
    "metadata-parquet": Inputs("metadata.parquet", metadata_parquet),
    "names": Inputs("", names, put=put_names),
    "beside": Inputs("a.txt", texts, around=beside, options={"keep_columns": ("txt", "json")}),
}
JOBS = tuple(Target(f"job-{name}", one.seeds, read_whole(one), is_lenient=True) for name, one in KINDS.items())
