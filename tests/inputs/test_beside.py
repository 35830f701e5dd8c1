"""Text beside images as columns."""

import os
from pathlib import Path

import pytest

from batchcap.core.errors import UsageError
from tests.inputs.imagefolders import carried, described, make_images, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_images(tmp_path / "in")
    return tmp_path / "in"


def test_text_beside_an_image(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a.txt").write_text("of a\n")
    (folder / "b.txt").write_bytes(b"\xff")
    os.mkfifo(folder / "sub/c.txt")
    (folder / "sub/deep/d.json").write_text('{"tags": []}')
    found = carried(folder, "txt", "json")
    assert [value["txt"] for value in found.values()] == ["of a\n", None, None, None]
    assert [value["json"] for value in found.values()] == [None, None, None, '{"tags": []}']
    assert "column 'txt' is null where the file beside an image can't be read, first for" in caplog.text
    (folder / "a.txt").write_bytes(b"x" * (1 << 20))
    (folder / "b.txt").write_bytes(b"x" * ((1 << 20) + 1))
    assert [value["txt"] and len(value["txt"]) for value in carried(folder, "txt").values()] == [
        1 << 20,
        None,
        None,
        None,
    ]


def test_text_is_carried_where_it_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="no input has a column 'txt'"):
        carried(folder, "txt")
    (folder / "a.txt").write_text("beside")
    write(folder / "metadata.jsonl", described())
    assert carried(folder, "*")["a.png"] == {"text": "of a.png", "label": 0}
    assert carried(folder, "txt", "*")["a.png"] == {"txt": "beside", "text": "of a.png", "label": 0}
