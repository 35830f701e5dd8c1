"""A job folder takes only its own job: what differs is named, added inputs extend it, one run works on it at a time."""

import shutil
import signal
from pathlib import Path

import pytest

from batchcap.core.errors import ExitCode
from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from tests.e2e.conftest import Job
from tests.e2e.inputs import image, write_images, write_parquet
from tests.e2e.process import Process, captions, read_summary, run, snapshot

pytestmark = pytest.mark.slow

COUNT = 30


@pytest.fixture(scope="module")
def small(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A job that was stopped by its limit, and its folder; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("small")
    inputs = (str(write_images(folder / "pictures", COUNT)), str(write_parquet(folder / "rows.parquet", 20)))
    begun = Job(inputs, job.model, job.expected)
    run(*begun.arguments(folder / "out", "--rows-per-part", "8"))
    return begun, folder


@pytest.fixture
def copy(small: tuple[Job, Path], tmp_path: Path) -> tuple[Job, Path]:
    """The small job with inputs and output of its own. Copies keep their times: they are the same files."""
    begun, _folder = small
    return begun, Path(shutil.copytree(_folder / "out", tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--prompt", "What is this?"), ("--prompt", "Describe this image", "What is this?")),
        (("--temperature", "0.5", "--max-new-tokens", "47"), ("--temperature", "0.5", "--max-new-tokens", "48", "47")),
        (
            ("--keep-columns", "", "--max-visual-tokens", "64"),
            ("--keep-columns", "label", "--max-visual-tokens", "256"),
        ),
    ],
)
def test_another_setting_is_refused_and_named(
    copy: tuple[Job, Path], options: tuple[str, ...], named: tuple[str, ...]
) -> None:
    job, output = copy
    before = snapshot(output)
    process = run(*job.arguments(output, *options), expect=ExitCode.NOT_SAME_JOB)
    for text in (*named, "another --output"):
        assert text in process.stderr
    # Settings that are the same are not named.
    assert "--top-p" not in process.stderr
    assert snapshot(output) == before


def test_another_model_is_refused_and_named(copy: tuple[Job, Path], tiny_bundle_fp32: Bundle) -> None:
    job, output = copy
    before = snapshot(output)
    process = run(*job.arguments(output, "--model", str(tiny_bundle_fp32.folder)), expect=ExitCode.NOT_SAME_JOB)
    assert "--model" in process.stderr
    assert tiny_bundle_fp32.id[:16] in process.stderr
    assert snapshot(output) == before


def test_where_the_job_runs_is_no_difference(copy: tuple[Job, Path]) -> None:
    job, output = copy
    before = captions(output)
    run(*job.arguments(output, "--slots", "2", "--decoders", "2", "--rows-per-part", "5", "--queue-mib", "9"))
    assert captions(output) == before


def snapshot_of_parts(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in JobFolder(output).part_paths()}


def test_added_inputs_extend_the_job(small: tuple[Job, Path], tmp_path: Path) -> None:
    job, _folder = small
    images, output = write_images(tmp_path / "pictures", COUNT), tmp_path / "out"
    more = Job((str(images), job.inputs[1]), job.model, job.expected)
    run(*more.arguments(output, "--rows-per-part", "8"))
    before, parts = captions(output), snapshot_of_parts(output)
    # Its name sorts before all others, but what is planned never moves: it comes last.
    (images / "0" / "!added.png").write_bytes(image(999))
    extra = write_parquet(tmp_path / "extra.parquet", 5)
    process = run(*Job((*more.inputs, str(extra)), job.model, job.expected).arguments(output, "--rows-per-part", "8"))
    assert process.done_before == len(before)
    after = captions(output)
    assert after.slice(0, len(before)) == before
    added = after.slice(len(before))["id"].to_pylist()
    assert added == ["0/!added.png", *[f"extra.parquet:{row}" for row in range(5)]]
    assert {name: snapshot_of_parts(output)[name] for name in parts} == parts


def test_removed_and_changed_inputs_keep_their_rows(small: tuple[Job, Path], tmp_path: Path) -> None:
    job, _folder = small
    images, output = write_images(tmp_path / "pictures", COUNT), tmp_path / "out"
    rows = write_parquet(tmp_path / "rows.parquet", 20)
    mine = Job((str(images), str(rows)), job.model, job.expected)
    run(*mine.arguments(output, "--limit", "10"))
    done = captions(output)
    first, later = done["id"].to_pylist()[0], "2/0029.png"
    assert later not in done["id"].to_pylist()
    (images / first).unlink()
    (images / later).unlink()
    run(*mine.arguments(output))
    found = {row["id"]: row for row in captions(output).to_pylist()}
    # Captioned before it went: the caption stays. Not captioned yet: its row is there and says what is wrong.
    assert captions(output).slice(0, 10) == done
    assert (found[later]["status"], found[later]["error_kind"]) == ("failed", "missing")
    # A Parquet file that has lost rows is refused, and nothing changes.
    write_parquet(rows, 19)
    before = snapshot_of_parts(output)
    for choice in ("stop", "keep", "recaption"):
        process = run(*mine.arguments(output, "--on-changed", choice), expect=ExitCode.NOT_SAME_JOB)
        assert "rows.parquet had 20 rows and has 19 now" in process.stderr
        assert snapshot_of_parts(output) == before
        assert read_summary(output)["exit_code"] == ExitCode.NOT_SAME_JOB
    # One that has got rows extends the job.
    write_parquet(rows, 21)
    assert "rows.parquet has 1 more row\n" in run(*mine.arguments(output)).stderr
    assert {name: snapshot_of_parts(output)[name] for name in before} == before
    assert captions(output)["id"].to_pylist()[-1] == "rows.parquet:20"


def test_a_second_run_is_turned_away_and_told_by_whom(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = Process(*job.arguments(output, "--slots", "1"), warm=True)
    assert first.wait_until(lambda: first.done_before is not None)
    first.signal_group(signal.SIGSTOP)  # or it would be over before the second has looked
    second = run(*job.arguments(output), expect=ExitCode.LOCKED)
    first.signal_group(signal.SIGCONT)
    assert f"process {first.popen.pid} on" in second.stderr
    assert "wait for it, or stop it first" in second.stderr
    # The first has not noticed.
    assert first.popen.poll() is None
    first.signal_group(signal.SIGINT)
    assert first.wait() == ExitCode.INTERRUPTED
    assert read_summary(output)["state"] == "interrupted"
