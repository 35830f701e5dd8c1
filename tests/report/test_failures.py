"""Where nearly all rows failed alike, one line says why and what helps."""

from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind
from batchcap.core.records import CaptionRow, Shard, Status
from batchcap.core.row_counts import RowCounts
from batchcap.job import failures
from batchcap.job.failures import why_alike
from batchcap.store.folder import JobFolder
from batchcap.store.parts import write_part
from tests.store.records import caption_row

TABLE = "/data/set/rows.parquet"


def failed(kind: ErrorKind, message: str, source: str = TABLE) -> CaptionRow:
    return CaptionRow("rows:0", source, 0, status=Status.FAILED, error_kind=kind, error_message=message)


def why(output: Path, rows: list[CaptionRow], given: InputConfig | None = None) -> str | None:
    """Of a job with these rows, in parts of four."""
    folder, counts = JobFolder.open_or_create(output), RowCounts()
    for seq, first in enumerate(range(0, len(rows), 4)):
        some = rows[first : first + 4]
        write_part(folder.part_path(seq), Shard(seq, first, len(some)), some, None, {})
    for row in rows:
        counts.add_row(row)
    return why_alike(folder, counts, given or InputConfig((TABLE,)))


@pytest.mark.parametrize(
    ("row", "given", "advice"),
    [
        (failed(ErrorKind.MISSING, "/data/set/a/1.jpg: No such file or directory"), {}, "give --image-root with"),
        (
            failed(ErrorKind.MISSING, "/r/a/1.jpg: No such file"),
            {"image_root": "/r"},
            "start from /r: give --image-root",
        ),
        (failed(ErrorKind.MISSING, "/mnt/1.jpg: No such file or directory"), {}, "mount or copy the missing files"),
        (failed(ErrorKind.MISSING, "/p/1.jpg: No such file", "/p/1.jpg"), {}, "mount or copy the missing files"),
        (failed(ErrorKind.MISSING, "the image's cell is null"), {}, "--image-column"),
        (failed(ErrorKind.NOT_AN_IMAGE, "a Git LFS pointer, not the image"), {}, "git lfs pull"),
        (failed(ErrorKind.TOO_LARGE, "more than 5 pixels"), {}, "--max-image-pixels"),
    ],
)
def test_the_option_that_helps_is_named(tmp_path: Path, row: CaptionRow, given: dict[str, str], advice: str) -> None:
    said = why(tmp_path / "out", [row] * 9 + [caption_row(9)], InputConfig((TABLE,), **given))  # type: ignore[arg-type]
    assert said is not None
    assert said.startswith(f"9 of 10 rows failed as {row.error_kind}, such as rows:0 ({row.error_message}): ")
    assert advice in said
    assert "\n" not in said


def test_every_kind_has_its_advice(tmp_path: Path) -> None:
    assert set(failures._ADVICE) == set(ErrorKind)
    for kind in ErrorKind:
        assert why(tmp_path / kind, [failed(kind, "x")] * 5)


def test_a_few_failures_or_several_causes_have_no_such_line(tmp_path: Path) -> None:
    corrupt, missing = failed(ErrorKind.CORRUPT, "cut"), failed(ErrorKind.MISSING, "gone")
    assert why(tmp_path / "few", [corrupt] * 8 + [caption_row(8), caption_row(9)]) is None
    assert why(tmp_path / "both", [corrupt] * 5 + [missing] * 5) is None
    assert why(tmp_path / "none", [caption_row(0)]) is None


def test_the_line_is_one_short_line_whatever_the_message_holds(tmp_path: Path) -> None:
    row = replace(failed(ErrorKind.CORRUPT, "a\nb\x1b[2J" + "x" * 5000), id="rows\n:0")
    said = why(tmp_path / "out", [row] * 5)
    assert said is not None
    assert said.isprintable()
    assert len(said) < 700


def test_a_part_that_can_not_be_read_now_changes_no_end(tmp_path: Path) -> None:
    rows = [failed(ErrorKind.CORRUPT, "cut")] * 4
    assert why(tmp_path / "out", rows)
    JobFolder(tmp_path / "out").part_path(0).write_bytes(b"torn")
    counts = RowCounts()
    for row in rows:
        counts.add_row(row)
    assert why_alike(JobFolder(tmp_path / "out"), counts, InputConfig((TABLE,))) == "4 of 4 rows failed as corrupt"
