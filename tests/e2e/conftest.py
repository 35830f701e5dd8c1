"""One job that the end-to-end tests share, and its uninterrupted run, which others are compared with."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest

from batchcap.export.checkpoint.options import ExportOptions
from batchcap.model.bundle import Bundle
from tests.e2e.inputs import write_images, write_parquet
from tests.e2e.process import STARTED, assert_whole, captions, run
from tests.shared import made_once, shared_bundle, shared_folder

IMAGES, PARQUET_ROWS = 180, 80
ROWS = IMAGES + 1 + PARQUET_ROWS
SMALL = (40, 35)  # images and rows
# ONNX Runtime starts in a fraction of the time that PyTorch takes; what PyTorch decides has tests of its own.
SETTINGS = ("--max-new-tokens", "48", "--slots", "4", "--rows-per-part", "32", "--keep-columns", "label")
# One thread: several would spin, waiting for one another, and a decoder this tiny gains nothing from them.
SETTINGS = (*SETTINGS, "--vision-backend", "onnx", "--decoder-threads", "1")
# Long captions, for tests that must strike before a fast machine has finished.
LONG = ("--no-loop-stop", "--max-new-tokens", "160")


@dataclass(frozen=True)
class Job:
    """A job: what goes in, with which model, and what must come out."""

    inputs: tuple[str, ...]
    model: str
    expected: pa.Table
    took_s: float = 0.0

    def arguments(self, output: Path, *options: str) -> tuple[str, ...]:
        """The command line; later options take the place of earlier ones."""
        return ("caption", *self.inputs, "--output", str(output), "--model", self.model, *SETTINGS, *options)

    def prepare(self, output: Path) -> None:
        """Nothing of an earlier run is there."""
        shutil.rmtree(output, ignore_errors=True)

    def assert_whole(self, output: Path) -> None:
        """What came out is what must come out, and nothing else."""
        assert_whole(output, self.expected)


def uninterrupted_job(folder: Path, bundle: Bundle, images: int, parquet_rows: int, *options: str) -> Job:
    """A job of so many images and rows, run once without interruption."""
    inputs = (
        str(write_images(folder / "pictures", images)),
        str(write_parquet(folder / "rows.parquet", parquet_rows)),
    )
    begun = Job(inputs, str(bundle.folder), pa.table({}))
    started_s = time.monotonic()
    run(*begun.arguments(folder / "out", *options))
    return replace(begun, expected=captions(folder / "out"), took_s=time.monotonic() - started_s)


@pytest.fixture(autouse=True)
def _nothing_left_at_work() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().put_away()


@pytest.fixture(scope="session")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with an INT4 decoder of the default block size.

    Its kernel rounds the last row of an odd batch differently (that of smaller blocks does not): a decoder that did
    not pad its batches would be found out.
    """
    return shared_bundle(tmp_path_factory, "default", tiny_checkpoint, ExportOptions(context=1024))


def _write_inputs(folder: Path) -> None:
    write_images(folder / "pictures", IMAGES)
    write_parquet(folder / "rows.parquet", PARQUET_ROWS)


@pytest.fixture(scope="session")
def job(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The shared job, run once without interruption."""
    inputs = made_once(shared_folder(tmp_path_factory) / "job-inputs", _write_inputs)
    begun = Job((str(inputs / "pictures"), str(inputs / "rows.parquet")), str(bundle.folder), pa.table({}))
    output = made_once(shared_folder(tmp_path_factory) / "job", lambda folder: run(*begun.arguments(folder)))
    job = replace(begun, expected=captions(output))
    # What could never differ would prove nothing.
    assert len(job.expected) == ROWS
    assert len(set(job.expected["caption"].to_pylist())) > ROWS / 2
    assert 4 < job.expected["status"].to_pylist().count("failed") < 20
    return job


@pytest.fixture(scope="session")
def small_job(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job of fewer rows, for tests that need some, or run it whole several times."""
    return uninterrupted_job(tmp_path_factory.mktemp("small-job"), bundle, *SMALL)
