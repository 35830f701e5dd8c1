"""Rows captioned again by the real command: after images were mended, with other settings, after a kill."""

import signal
from pathlib import Path

import pytest

from batchcap.store.folder import JobFolder
from tests.e2e.command import assert_refused, batchcap, read_rows
from tests.e2e.conftest import Job
from tests.e2e.inputs import BROKEN_EVERY
from tests.e2e.inputs import image as any_image
from tests.e2e.process import Process, assert_clean, durable_rows, read_summary, run

pytestmark = pytest.mark.slow

IMAGES, BROKEN = 40, range(0, 40, 2)


def image(number: int) -> bytes:
    assert number < BROKEN_EVERY - 1
    return any_image(number + 8)  # none of those that are broken by themselves


def captioning(job: Job, tmp_path: Path, *options: str) -> tuple[str, ...]:
    return ("caption", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", job.model, "--vision-backend", "onnx",
            "--max-new-tokens", "24", "--rows-per-part", "8", "--slots", "2", *options)  # fmt: skip


@pytest.fixture
def half_broken(job: Job, tmp_path: Path) -> list[dict[str, object]]:
    """Caption a folder of which every second image is cut off, then mend them; the rows before."""
    (tmp_path / "in").mkdir()
    for number in range(IMAGES):
        content = image(number)
        (tmp_path / "in" / f"{number:02d}").with_suffix(".png").write_bytes(
            content[: len(content) // 3] if number in BROKEN else content
        )
    run(*captioning(job, tmp_path))
    for number in BROKEN:
        (tmp_path / "in" / f"{number:02d}.png").write_bytes(image(number))
    return read_rows(tmp_path / "out")


def test_mended_images_after_a_kill(job: Job, half_broken: list[dict[str, object]], tmp_path: Path) -> None:
    assert [row["status"] for row in half_broken] == ["failed", "ok"] * 20
    process = Process(*captioning(job, tmp_path, "--retry", "failed", "--slots", "1"), warm=True)
    folder = JobFolder(tmp_path / "out")
    before = folder.part_path(0).stat().st_ino
    assert process.wait_until(lambda: folder.part_path(0).stat().st_ino != before)
    process.signal_group(signal.SIGKILL)
    process.wait()
    process.wait_for_group()
    assert len(read_rows(tmp_path / "out")) == IMAGES, "no part is ever missing"
    assert_clean(run(*captioning(job, tmp_path)))
    rows = read_rows(tmp_path / "out")
    assert durable_rows(tmp_path / "out") == (IMAGES, 0)
    assert [row["status"] for row in rows] == ["ok"] * IMAGES
    assert [row["attempts"] for row in rows] == [2, 1] * 20
    assert [row for row in rows if row["attempts"] == 1] == half_broken[1::2]
    fresh = tmp_path / "fresh"
    run("caption", *captioning(job, tmp_path)[1:2], "-o", str(fresh), *captioning(job, tmp_path)[4:])
    assert [row["caption"] for row in rows] == [row["caption"] for row in read_rows(fresh)]


def test_truncated_captions_get_more_tokens(job: Job, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(24):
        (tmp_path / "in" / f"{number:02d}.png").write_bytes(image(number))
    run(*captioning(job, tmp_path, "--max-new-tokens", "6"))
    before = read_rows(tmp_path / "out")
    truncated = [row["id"] for row in before if row["verdict"] == "truncated"]
    assert len(truncated) > 0
    done = batchcap(*captioning(job, tmp_path, "--max-new-tokens", "6", "--retry", "truncated"))
    assert f"{len(truncated)} captions (truncated) are not retried" in done.stderr
    assert read_rows(tmp_path / "out") == before
    run(*captioning(job, tmp_path, "--max-new-tokens", "48", "--retry", "truncated"))
    rows = read_rows(tmp_path / "out")
    assert [row["id"] for row in rows if row["attempts"] == 2] == truncated
    assert all(row["new_tokens"] > 6 for row in rows if row["attempts"] == 2)  # type: ignore[operator]
    assert_refused(batchcap(*captioning(job, tmp_path, "--max-new-tokens", "48")), "max-new-tokens: was 6", code=5)


def test_another_image_under_an_old_name(job: Job, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.png").write_bytes(image(number))
    run(*captioning(job, tmp_path))
    before = read_rows(tmp_path / "out")
    (tmp_path / "in" / "4.png").write_bytes(image(39))
    refused = batchcap(*captioning(job, tmp_path))
    assert_refused(refused, "4.png has changed since", "--on-changed recaption", "--on-changed keep", code=5)
    assert read_summary(tmp_path / "out")["exit_code"] == 5
    kept = batchcap(*captioning(job, tmp_path, "--on-changed", "keep"))
    assert (kept.returncode, read_rows(tmp_path / "out")) == (0, before)
    assert "the captions are kept" in kept.stderr
    run(*captioning(job, tmp_path, "--on-changed", "recaption"))
    rows = read_rows(tmp_path / "out")
    assert [row["attempts"] for row in rows] == [1, 1, 1, 1, 2, 1]
    assert rows[4]["image_sha256"] != before[4]["image_sha256"]
    assert rows[4]["caption"] != before[4]["caption"]
    assert [row for row in rows if row["attempts"] == 1] == [*before[:4], before[5]]


def test_mistaken_kinds_are_refused(tmp_path: Path) -> None:
    command = ("caption", tmp_path, "-m", "demo", "-o", tmp_path / "out", "--retry", "failed,crashed")
    assert_refused(
        batchcap(*command), "--retry must be some of failed, truncated, repeated, degenerate, empty, not 'crashed'"
    )


def test_a_retry_needs_a_job(job: Job, tmp_path: Path) -> None:
    """A mistyped --output must not begin another job. In a job file `retry` stands from the first night on."""
    (tmp_path / "captions" / "_batchcap").mkdir(parents=True)
    done = batchcap("caption", job.inputs[0], "-m", job.model, "-o", tmp_path / "captoins", "--retry", "failed")
    assert_refused(done, "captoins is not a job folder", "leave --retry out", "did you mean captions?")
    assert [path.name for path in tmp_path.iterdir()] == ["captions"]
    text = f'output = "out"\nmodel = "{job.model}"\n[input]\ninputs = ["{job.inputs[0]}"]\n[limits]\nlimit = 2\n'
    (tmp_path / "job.toml").write_text(f'{text}[generation]\nmax_new_tokens = 4\n[resume]\nretry = ["failed"]\n')
    begun = batchcap("run", tmp_path / "job.toml")
    assert begun.returncode == 0, begun.stderr
    assert len(read_rows(tmp_path / "out")) == 2
