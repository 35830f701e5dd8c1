"""WebDataset shards become captions: found by a range, stopped and gone on with, columns carried."""

from pathlib import Path

import pytest

from batchcap.model.bundle import Bundle
from tests.e2e.command import ONNX, assert_refused, batchcap, read_rows
from tests.e2e.inputs import image
from tests.inputs.archives import tar_bytes, written, zip_bytes

pytestmark = pytest.mark.slow

ROWS, CUT_ROW = 6, 2


def members(shard: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for row in range(ROWS):
        key = f"{shard}/{row:03d}"
        data = image(10 * shard + row + 8)
        found[f"{key}.jpg"] = data[:90] if row == CUT_ROW else data
        found |= {f"{key}.txt": f"text {shard} {row}".encode(), f"{key}.cls": b"%d" % row}
    return found


def test_shards_are_captioned_and_gone_on_with(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    (tmp_path / "in").mkdir()
    written(tmp_path / "in/s-00.tar", tar_bytes(members(0)))
    written(tmp_path / "in/s-01.tar", tar_bytes(members(1), "w:gz"))
    written(tmp_path / "in/images.zip", zip_bytes({"x/1.png": image(1), "x/3.png": image(3)}))
    inputs = (tmp_path / "in/s-{00..01}.tar", tmp_path / "in/images.zip")
    common = ("-o", tmp_path / "out", "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 2)
    options = ("--keep-columns", "*", "--rows-per-part", 4, "--limit")
    cache = str(tmp_path / "cache")
    first = batchcap("caption", *inputs, *common, *options, 7, BATCHCAP_CACHE=cache)
    assert first.returncode == 0, first.stderr
    done = batchcap("caption", *inputs, *common, *options, 0, BATCHCAP_CACHE=cache)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    shards = [f"s-0{shard}.tar:{shard}/{row:03d}" for shard in range(2) for row in range(ROWS)]
    assert [row["id"] for row in rows] == [*shards, "images.zip:x/1.png", "images.zip:x/3.png"]
    failed = [row["id"] for row in rows if row["status"] == "failed"]
    assert failed == [f"s-0{shard}.tar:{shard}/00{CUT_ROW}" for shard in range(2)]
    assert [row["cls"] for row in rows] == [*range(ROWS), *range(ROWS), None, None]
    assert [row["txt"] for row in rows[ROWS:]] == [*(f"text 1 {row}" for row in range(ROWS)), None, None]
    assert rows[-1]["__key__"] == "x/3.png"
    assert batchcap("report", tmp_path / "out", BATCHCAP_CACHE=cache).returncode == 0


def test_a_folder_of_shards_says_how_to_name_them(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    written(tmp_path / "s-00.tar", tar_bytes(members(0)))
    done = batchcap("caption", tmp_path, "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder)
    assert_refused(done, "To caption what is in .tar files, name them, in quotes", f"'{tmp_path}/**/*.tar'")
