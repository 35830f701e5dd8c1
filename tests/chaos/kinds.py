"""Jobs of the other kinds of input, with other forms of their captions, and what an uninterrupted run makes of them."""

import base64
import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from batchcap.core.atomic import TEMPORARY_SUFFIX
from batchcap.core.jobfolder import DATASET_MARK
from tests.e2e.conftest import Job
from tests.e2e.inputs import image
from tests.e2e.process import DECIDED, assert_whole, captions, run
from tests.inputs.archives import tar_bytes, zip_bytes

# Small parts, so that many files are written.
PARTS = ("--rows-per-part", "12")
ROWS = 40
# A model without training says little that ends well.
ALL_VERDICTS = ("--verdicts", "ok,truncated,repeated,degenerate,empty")


@dataclass(frozen=True)
class FormsJob(Job):
    """A job that writes other forms, too.

    Attributes:
        name: of its kind of input.
        options: of its rows.
        forms: in a folder beside the job folder.
        beside: forms whose files are beside the images.
        written: what an uninterrupted run writes in these forms, by the files' names.
    """

    name: str = ""
    options: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    written: dict[str, Any] = field(default_factory=dict)

    def arguments(self, output: Path, *options: str) -> tuple[str, ...]:
        """The command line, with its forms."""
        places = [*self.beside, *(f"{form}:{forms_of(output) / form}" for form in self.forms)]
        also = [word for place in places for word in ("--also", place)]
        return super().arguments(output, "--keep-columns", "*", *ALL_VERDICTS, *self.options, *also, *options)

    def prepare(self, output: Path) -> None:
        """Nothing of an earlier run is there."""
        super().prepare(output)
        shutil.rmtree(forms_of(output), ignore_errors=True)
        forms_of(output).mkdir(parents=True)
        for path in self._beside():
            path.unlink()

    def assert_whole(self, output: Path) -> None:
        """The job is, and so are its other forms."""
        assert_whole(output, self.expected)
        found = self.contents(output)
        assert found.keys() == self.written.keys(), found.keys() ^ self.written.keys()
        differing = [name for name, content in found.items() if content != self.written[name]]
        assert not differing, f"other forms differ: {differing}"

    def contents(self, output: Path) -> dict[str, Any]:
        """What is written in other forms."""
        folder = forms_of(output)
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        found |= {f"beside {path.name}": path for path in self._beside()}
        return {name: decided(path) for name, path in found.items() if path.name != DATASET_MARK}

    def _beside(self) -> list[Path]:
        folder = Path(self.inputs[0])
        folder = folder if folder.is_dir() else folder.parent
        suffixes = (*(f".{form}" for form in self.beside), TEMPORARY_SUFFIX)
        return [path for path in sorted(folder.rglob("*")) if self.beside and path.name.endswith(suffixes)]


def forms_of(output: Path) -> Path:
    """The folder of the other forms of a job."""
    return output.with_name(f"{output.name}-forms")


def decided(path: Path) -> Any:
    """The content of a file; of one with all columns, without what was only measured."""
    if path.name == "jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    elif path.name == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    elif path.name == "arrow":
        rows = pa.feather.read_table(path).to_pylist()
    else:
        return path.read_bytes()
    return [{name: row[name] for name in DECIDED if name in row} for row in rows]


def members() -> dict[str, bytes]:
    """The samples of an archive."""
    found = dict[str, bytes]()
    for row in range(ROWS):
        found |= {f"{row % 3}/{row:04d}.jpg": image(row), f"{row % 3}/{row:04d}.txt": b"label %d" % row}
    return found


def sorted_members() -> dict[str, bytes]:
    return dict(sorted(members().items()))


def write_tar(path: Path) -> None:
    path.write_bytes(tar_bytes(sorted_members(), "w:gz" if path.suffix == ".tgz" else "w"))


def write_zip(path: Path) -> None:
    path.write_bytes(zip_bytes(members()))


def rows_of_paths(path: Path) -> list[dict[str, Any]]:
    """Rows that name images, which are written beside the table; one holds its image as text."""
    rows = []
    for row in range(ROWS):
        name = f"{row % 3}/{row:04d}.jpg"
        file = path.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(row))
        rows.append({"image": name, "label": f"label {row}", "n": row})
    rows[1]["image"] = "data:image/jpeg;base64," + base64.b64encode(image(1)).decode()
    return rows


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of_paths(path)))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label", "n"])
        writer.writeheader()
        writer.writerows(rows_of_paths(path))


def write_stream(path: Path) -> None:
    table = pa.table({"image": [image(row) for row in range(ROWS)], "label": [f"label {row}" for row in range(ROWS)]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_lists(path: Path) -> None:
    lists = [[image(row), image(row + ROWS)][: row % 3] for row in range(ROWS)]
    table = pa.table(
        {"images": pa.array(lists, pa.list_(pa.binary())), "label": [f"label {row}" for row in range(ROWS)]}
    )
    pq.write_table(table, path, row_group_size=9)


def write_described(path: Path) -> None:
    """A Hugging Face imagefolder, in folders whose names are columns."""
    for row in range(ROWS):
        file = path / f"k={row % 2}/{row:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(row))
    lines = [{"file_name": f"k={row % 2}/{row:04d}.jpg", "label": f"label {row}"} for row in range(ROWS)]
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass(frozen=True, slots=True)
class Kind:
    """Inputs to be; see `FormsJob`."""

    name: str
    write: Callable[[Path], None]
    options: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


KINDS = (
    Kind("x.tar", write_tar, forms=("txt", "webdataset")),
    Kind("x.tgz", write_tar, ("--sample", "30"), forms=("json", "jsonl")),
    Kind("x.zip", write_zip, forms=("hf-parquet", "csv")),
    Kind("x.jsonl", write_jsonl, forms=("dataset",), beside=("txt",)),
    Kind("x.csv", write_csv, ("--where", "n > 4"), forms=("jsonl",), beside=("xmp",)),
    Kind("x.arrow", write_stream, ("--sample", "33"), forms=("arrow", "imagefolder")),
    Kind("x.parquet", write_lists, ("--images", "each"), forms=("hf-parquet", "jsonl")),
    Kind("described", write_described, forms=("imagefolder",), beside=("json",)),
)


def job_of(kind: Kind, folder: Path, model: str) -> FormsJob:
    """The job of a kind of input, run once without interruption."""
    path = folder / kind.name.replace(".", "-") / kind.name
    path.parent.mkdir(parents=True)
    kind.write(path)
    job = FormsJob((str(path),), model, pa.table({}), 0.0, kind.name, kind.options, kind.forms, kind.beside)
    output = folder / f"out-{path.parent.name}"
    job.prepare(output)
    started_s = time.monotonic()
    run(*job.arguments(output, *PARTS))
    took_s = time.monotonic() - started_s
    job = replace(job, expected=captions(output), took_s=took_s, written=job.contents(output))
    assert len(job.written) >= len(kind.forms) + len(kind.beside)
    return job
