"""What it takes to read inputs at an address: requests and bytes, beside the same files on this disk, in one run.

A server on this machine speaks S3 (moto's), so there is no time on the way: its requests are what a network would wait
for. For each kind: the index or footer, all rows, a carried column, and ten rows in the middle as a resume reads them.

usage: python benchmarks/addresses.py [--rows N]
"""

import argparse
import io
import json
import logging
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.config import InputConfig
from batchcap.core.machine import cpu_name
from batchcap.core.sources import Piece
from batchcap.inputs.reader import Reader
from batchcap.inputs.registry import open_readers
from batchcap.inputs.storage import look_again
from batchcap.remote import file, objects

BUCKET = "benchmark"
ROWS_PER_PART = 1000
ACCOUNT = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Requests:
    """Sizes of the ranges that were asked for."""

    sizes: list[int] = field(default_factory=list)

    def read_range(self, address: str, start: int, size: int, version: str) -> bytes:
        """Count, and ask."""
        self.sizes.append(size)
        return objects.read_range(address, start, size, version)


def write_inputs(folder: Path, rows: int) -> dict[str, tuple[str, Path, str]]:
    """A file of each kind: reader, path, column."""
    table = pa.table(
        {"image": [os.urandom(2000) for _ in range(rows)], "n": list(range(rows)), "text": ["a text " * 20] * rows}
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=1000)
    with (folder / "a.jsonl").open("w") as lines:
        for number in range(rows):
            lines.write(json.dumps({"image": f"{number}.jpg", "n": number, "text": "a text " * 20}) + "\n")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, image in enumerate(table["image"].to_pylist()):
            for name, content in ((f"{number:07}.jpg", image), (f"{number:07}.txt", b"a text")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    kinds = {"Parquet": ("parquet", "n"), "JSONL": ("jsonl", "n"), "tar": ("tar", "txt")}
    return {name: (kind, folder / f"a.{kind}", column) for name, (kind, column) in kinds.items()}


def steps(reader: Reader, path: Path, kind: str) -> dict[str, Callable[[], object]]:
    """What a job does with an input."""
    rows = reader.count(path)
    piece = Piece(0, "a", str(path), kind, 0, rows)
    parts = [
        Piece(start, "a", str(path), kind, start, min(ROWS_PER_PART, rows - start))
        for start in range(0, rows, ROWS_PER_PART)
    ]
    return {
        "rows": lambda: sum(1 for _ in reader.rows(piece, range(rows))),
        "columns": lambda: [reader.columns(one) for one in parts],
        "ten rows": lambda: list(reader.rows(piece, range(rows // 2, rows // 2 + 10))),
    }


def measured(kind: str, path: Path, column: str, requests: Requests, size: int) -> dict[str, str]:
    """Seconds, requests and share of the file's bytes of each step."""
    look_again()
    file._ranges_of.cache_clear()  # noqa: SLF001 - as a new process
    reader = open_readers(InputConfig((str(path),), keep_columns=(column,), allow_remote=True))[kind]
    found = {}

    def take(name: str, step: Callable[[], object]) -> None:
        requests.sizes.clear()
        started_s = time.perf_counter()
        step()
        took_s = time.perf_counter() - started_s
        found[name] = f"{took_s:.2f} s, {len(requests.sizes)} requests, {sum(requests.sizes) / size:.2f} of the bytes"

    take("index", lambda: reader.count(path))
    for name, step in steps(reader, path, kind).items():
        take(name, step)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - an extra for development

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(ACCOUNT, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    requests = Requests()
    with tempfile.TemporaryDirectory() as work, patch.object(file, "read_range", requests.read_range):
        os.environ["BATCHCAP_CACHE"] = str(Path(work) / "cache")
        import boto3  # noqa: PLC0415

        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        print(f"{cpu_name()}, {rows} rows")
        for name, (kind, path, column) in write_inputs(Path(work), rows).items():
            size = path.stat().st_size
            client.put_object(Bucket=BUCKET, Key=path.name, Body=path.read_bytes())
            for where, given in (("disk", path), ("S3", Path(f"s3:/{BUCKET}/{path.name}"))):
                for step, text in measured(kind, given, column, requests, size).items():
                    print(f"{name} ({size / 2**20:.0f} MiB), {where}, {step}: {text}")
    server.stop()


if __name__ == "__main__":
    main()
