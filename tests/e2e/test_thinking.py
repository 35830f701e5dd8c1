"""A checkpoint that thinks first: its thoughts stay out of the captions, in a column of their own."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.export import export_bundle
from batchcap.model.bundle import Bundle
from batchcap.report.status import printable
from batchcap.store.folder import JobFolder
from tests.checkpoints import Shape, make_checkpoint
from tests.e2e.command import ONNX, batchcap, read_rows
from tests.e2e.inputs import image

IMAGES, NEW_TOKENS = 16, 40


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("thinker")
    shape = Shape(layers=2, levels=(0,), vision_depth=2, tied=False, thinks=True)
    checkpoint = make_checkpoint(folder / "checkpoint", shape, seed=1)
    return export_bundle(str(checkpoint), folder / "bundle", ExportOptions(block_size=32, context=2048))


def begin(text: str) -> str:
    """So much of a caption as a table line surely shows."""
    return text[:40]


def test_thoughts_have_a_column_of_their_own(thinker: Bundle, tmp_path: Path) -> None:
    numbers = [number for number in range(2 * IMAGES) if number % 41 != 7][:IMAGES]
    pq.write_table(pa.table({"image": [image(number) for number in numbers]}), tmp_path / "in.parquet")
    command = ("caption", tmp_path / "in.parquet", "-o", tmp_path / "out", "-m", thinker.folder, *ONNX)
    done = batchcap(*command, "--no-loop-stop", "--max-new-tokens", NEW_TOKENS, "--show", IMAGES)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is a Thinking model") == 1

    names = pq.read_schema(JobFolder(tmp_path / "out").part_path(0)).names
    assert names[names.index("caption") + 1] == "thinking"
    rows = read_rows(tmp_path / "out")
    assert len(rows) == IMAGES
    assert any(row["caption"] for row in rows), "the model is made so that some answers come to their caption"
    assert any(row["verdict"] == "truncated" and row["thinking"] and row["caption"] == "" for row in rows)
    for row in rows:
        assert "</think>" not in str(row["caption"])
        assert row["finish_reason"] == "stop" or (row["finish_reason"], row["new_tokens"]) == ("length", NEW_TOKENS)
    table = done.stdout.splitlines()[:-1]
    assert len(table) == IMAGES
    for line, row in zip(table, rows, strict=True):
        assert begin("".join(line.split()[1:])) == begin("".join(printable(str(row["caption"])).split()))
    status = json.loads(batchcap("status", tmp_path / "out", "--json").stdout)
    assert status["done"] == IMAGES


def test_no_warning_where_there_is_room_for_thoughts(thinker: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image(1))
    command = ("caption", tmp_path / "a.png", "-o", tmp_path / "out", "-m", thinker.folder, *ONNX)
    done = batchcap(*command, "--max-new-tokens", 1024)
    assert done.returncode == 0, done.stderr
    assert "Thinking model" not in done.stderr
