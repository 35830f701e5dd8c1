"""What happens to rows whose bytes can't be read."""

import os
import tracemalloc
from pathlib import Path

import pytest

from batchcap.core.errors import ErrorKind, RowError
from batchcap.inputs import encoded as source
from tests.images.samples import encode, load, row, scene

IMAGE = encode(scene())


def kind_of(path: Path | str) -> ErrorKind:
    with pytest.raises(RowError) as caught:
        load(path=str(path))
    assert str(path).split("\0")[0] in caught.value.message.replace("\\x00", "\0")
    return caught.value.kind


def test_a_null_cell_is_missing() -> None:
    with pytest.raises(RowError) as caught:
        source.read_encoded(row())
    assert caught.value.kind is ErrorKind.MISSING


def test_bytes_win_over_the_path(tmp_path: Path) -> None:
    assert source.read_encoded(row(b"data", str(tmp_path / "absent"))) == b"data"


def test_the_name_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(IMAGE)
    assert load(path=str(path)).width == 96
    lie = tmp_path / "text.jpg"
    lie.write_text("not an image")
    with pytest.raises(RowError) as caught:
        load(path=str(lie))
    assert caught.value.kind is ErrorKind.NOT_AN_IMAGE


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "absent.jpg") is ErrorKind.MISSING
    (tmp_path / "file").write_bytes(IMAGE)
    assert kind_of(tmp_path / "file" / "below.jpg") is ErrorKind.MISSING
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert kind_of(tmp_path / "dangling") is ErrorKind.MISSING
    assert kind_of(f"{tmp_path}/a\0b") is ErrorKind.MISSING


def test_what_is_no_regular_file_is_unreadable_and_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert kind_of(tmp_path / "pipe.jpg") is ErrorKind.UNREADABLE
    assert kind_of(tmp_path) is ErrorKind.UNREADABLE
    assert kind_of("/dev/zero") is ErrorKind.UNREADABLE


def test_a_symlink_loop_and_an_endless_name_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert kind_of(tmp_path / "loop") is ErrorKind.UNREADABLE
    assert kind_of(tmp_path / ("x" * 300)) is ErrorKind.UNREADABLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_forbidden_file_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(IMAGE)
    path.chmod(0)
    assert kind_of(path) is ErrorKind.UNREADABLE


def test_a_symlink_to_an_image_is_followed(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(IMAGE)
    (tmp_path / "link").symlink_to(tmp_path / "picture")
    assert load(path=str(tmp_path / "link")).width == 96


def test_an_endless_file_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_ENCODED_MIB", 1)
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(RowError) as caught:
        source.read_encoded(row(path=str(path)))
    assert caught.value.kind is ErrorKind.TOO_LARGE


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_ENCODED_MIB", 16)
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, (17 << 20) + 1)
    tracemalloc.start()
    try:
        assert kind_of(path) is ErrorKind.TOO_LARGE
        _now_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
