"""The whole hostile folder through the real command: a row for every file, and nobody comes to harm."""

import os
from collections import Counter
from pathlib import Path

import pytest

from batchcap.core.errors import ErrorKind, ExitCode
from batchcap.core.text import printable_name
from batchcap.model.bundle import Bundle
from tests.e2e.command import read_rows
from tests.e2e.process import leftovers, read_summary, run
from tests.hostile.files import MAX_IMAGE_PIXELS, hostile_files
from tests.hostile.originals import originals
from tests.hostile.special import write_files, write_special

SEED = 11
MIN_FILES = 1000
SETTINGS = ("--max-new-tokens", "2", "--max-visual-tokens", "4", "--max-image-pixels", str(MAX_IMAGE_PIXELS))
SETTINGS = (*SETTINGS, "--slots", "8", "--vision-backend", "onnx")


@pytest.mark.slow
def test_every_file_of_a_hostile_folder_is_a_row(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    folder, output = tmp_path / "pictures", tmp_path / "out"
    ends = {**write_files(folder, hostile_files(SEED)), **write_special(folder, originals(SEED)[1])}
    assert len(ends) >= MIN_FILES
    process = run(
        "caption", str(folder), "-o", str(output), "-m", str(tiny_bundle_int4.folder), *SETTINGS, obeys_modes=True
    )

    rows = {str(row["id"]): row for row in read_rows(output)}
    expected = {printable_name(os.fsdecode(name)): kinds for name, kinds in ends.items()}
    assert len(read_rows(output)) == len(expected) == len(ends)
    assert set(rows) == set(expected)
    kinds = {
        name: None if row["error_kind"] is None else ErrorKind(str(row["error_kind"])) for name, row in rows.items()
    }
    assert not {name: kind for name, kind in kinds.items() if kind not in expected[name]}
    for name, row in rows.items():
        assert row["status"] == ("ok" if kinds[name] is None else "failed"), name
        assert (row["caption"] is None) == (row["error_message"] is not None) == (row["status"] == "failed"), name
    # REFUSED is for what a Parquet file has for an image.
    elsewhere = {ErrorKind.CRASHED, ErrorKind.INTERNAL, ErrorKind.NETWORK, ErrorKind.REFUSED}
    assert set(ErrorKind) - set(kinds.values()) == elsewhere

    assert "a new one is started" not in process.stderr
    # Nobody but us speaks on stderr: no warning of a library, no traceback.
    assert all(line[2:3] == line[5:6] == ":" for line in process.stderr.splitlines()), process.stderr
    summary = read_summary(output)
    failed = Counter(str(kind) for kind in kinds.values() if kind is not None)
    assert (summary["state"], summary["exit_code"], summary["remaining"]) == ("complete", ExitCode.COMPLETE, 0)
    assert summary["error_kinds"] == dict(failed)
    assert not leftovers(output)
