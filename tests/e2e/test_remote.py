"""A job whose inputs lie in a store of objects, with real processes: a kill in the middle, and the network gone."""

import signal
from pathlib import Path

import pytest

from batchcap.core.errors import ExitCode
from batchcap.store.folder import JobFolder
from tests.e2e.conftest import Job
from tests.e2e.process import Process, assert_whole, read_summary, run
from tests.stores import Bucket, FaultyBucket

PLACEMENT = ("--rows-per-part", "8", "--slots", "2", "--allow-remote")
IMPATIENT = "from batchcap.remote import attempts; attempts.FIRST_WAIT_S = attempts.MAX_WAIT_S = 0.0"


def put_inputs(job: Job, bucket: Bucket) -> Job:
    """The same job, whose inputs are in the bucket."""
    for given in map(Path, job.inputs):
        for path in given.rglob("*") if given.is_dir() else [given]:
            if path.is_file():
                bucket.put(path.relative_to(given.parent).as_posix(), path.read_bytes())
    inputs = tuple(f"{bucket.address}/{Path(given).name}" for given in job.inputs)
    column = job.expected.schema.get_field_index("source")
    sources = []
    for source in job.expected["source"].to_pylist():
        above = next(str(Path(given).parent) for given in job.inputs if source.startswith(given))
        sources.append(bucket.address + source.removeprefix(above))
    return Job(inputs, job.model, job.expected.set_column(column, "source", [sources]))


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_as_from_a_disk(small_job: Job, bucket: Bucket, tmp_path: Path) -> None:
    job, output = put_inputs(small_job, bucket), tmp_path / "out"
    folder = JobFolder(output)
    process = Process(*job.arguments(output, *PLACEMENT), environment=bucket.environment)
    assert process.wait_until(lambda: output.is_dir() and len(folder.part_paths()) >= 2)
    process.signal_group(signal.SIGKILL)
    process.wait()
    process.wait_for_group()
    assert 2 <= len(folder.part_paths()) < 8
    run(*job.arguments(output, *PLACEMENT), environment=bucket.environment, warm=False)
    assert_whole(output, job.expected)


@pytest.mark.slow
def test_the_network_goes_and_comes_back(small_job: Job, faulty: FaultyBucket, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT)  # for the workers, too
    job, output = put_inputs(small_job, faulty.bucket), tmp_path / "out"
    surroundings = {**faulty.bucket.environment, "PYTHONPATH": str(tmp_path)}
    process = Process(*job.arguments(output, *PLACEMENT), environment=surroundings)
    assert process.wait_until(lambda: faulty.way.count("GET", "/pictures/") >= 8)
    faulty.way.happens("slow_down", times=0, method="GET", part="/pictures/")
    assert process.wait() == ExitCode.STOPPED_EARLY
    assert "images in a row could not be fetched; their rows are left for the next run" in process.stderr
    assert "Traceback" not in process.stderr
    assert read_summary(output)["exit_code"] == ExitCode.STOPPED_EARLY
    faulty.way.heals()
    run(*job.arguments(output, *PLACEMENT), environment=surroundings, warm=False)
    assert_whole(output, job.expected)
