"""A JSONL file is captioned row by row, its columns carried; a broken line is a failed row and nothing else."""

import json
from pathlib import Path

import pytest

from batchcap.model.bundle import Bundle
from tests.e2e.command import ONNX, batchcap, read_rows
from tests.images.samples import encode, noise

pytestmark = pytest.mark.slow


def test_a_jsonl_file_beside_its_images(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode(noise(40, 40)))
    lines = [json.dumps({"image": name, "size": [1, 2], "title": "é"}) for name in ("a.png", "b.png", "gone.png")]
    (tmp_path / "x.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[1:]]))
    options = ("-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 4, "--keep-columns", "*")
    cache = {"BATCHCAP_CACHE": str(tmp_path / ".cache")}
    done = batchcap("caption", tmp_path / "x.jsonl", "-o", tmp_path / "out", *options, **cache)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert [(row["id"], row["error_kind"]) for row in rows] == [
        ("x.jsonl:0", None),
        ("x.jsonl:1", "unreadable"),
        ("x.jsonl:2", None),
        ("x.jsonl:3", "missing"),
    ]
    assert str(rows[1]["error_message"]).startswith(f"line 2 of {tmp_path}/x.jsonl is no JSON object: ")
    assert [row["size"] for row in rows] == [[1, 2], None, [1, 2], [1, 2]]
    assert [row["title"] for row in rows] == ["é", None, "é", "é"]
    folder = batchcap("caption", tmp_path, "-o", tmp_path / "out-2", *options, **cache)
    assert [row["id"] for row in read_rows(tmp_path / "out-2")] == ["a.png", "b.png"], folder.stderr
    assert "name a .jsonl file itself to caption its rows" in folder.stderr
