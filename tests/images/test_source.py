"""What happens to rows whose bytes can't be read."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from batchcap.core.errors import ErrorKind, RowError
from batchcap.core.records import ImageRow
from batchcap.core.sources import Address, FileAt, ImageRef
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


def failure_of(image: ImageRef) -> tuple[ErrorKind, str]:
    with pytest.raises(RowError) as caught:
        source.read_encoded(ImageRow(0, "a", "/in", 0, image))
    return caught.value.kind, caught.value.message


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(0, None, b"0123456789"), (4, None, b"456789"), (4, 3, b"456"), (0, 10, b"0123456789")],
)
def test_an_image_inside_of_a_file(tmp_path: Path, offset: int, size: int | None, expected: bytes) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    image = FileAt(str(tmp_path / "blob"), offset, size)
    assert source.read_encoded(ImageRow(0, "a", "/in", 0, image)) == expected


@pytest.mark.parametrize(
    ("offset", "size", "kind"),
    [
        (4, 7, ErrorKind.CORRUPT),
        (11, None, ErrorKind.CORRUPT),
        (-1, 3, ErrorKind.CORRUPT),
        (3, -1, ErrorKind.CORRUPT),
        (2**70, 1, ErrorKind.CORRUPT),
        (0, 2**70, ErrorKind.CORRUPT),
        (4, 0, ErrorKind.NOT_AN_IMAGE),
        (10, None, ErrorKind.NOT_AN_IMAGE),
    ],
)
def test_a_range_that_is_not_in_the_file(tmp_path: Path, offset: int, size: int | None, kind: ErrorKind) -> None:
    """Ranges come from lists and headers that others wrote."""
    (tmp_path / "blob").write_bytes(b"0123456789")
    assert failure_of(FileAt(str(tmp_path / "blob"), offset, size))[0] is kind


def test_a_range_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not a small one in a large file."""
    monkeypatch.setattr(source, "MAX_ENCODED_MIB", 1)
    (tmp_path / "blob").touch()
    os.truncate(tmp_path / "blob", 3 << 20)
    assert failure_of(FileAt(str(tmp_path / "blob"), 5, 2 << 20))[0] is ErrorKind.TOO_LARGE
    assert source.read_encoded(ImageRow(0, "a", "/in", 0, FileAt(str(tmp_path / "blob"), 2 << 20, 9))) == bytes(9)


def test_what_is_missing_says_what_is_odd(tmp_path: Path) -> None:
    kind, message = failure_of(FileAt(str(tmp_path / "blob"), 4, 3, "the cell is odd"))
    assert (kind, message) == (ErrorKind.MISSING, f"{tmp_path}/blob: No such file or directory; the cell is odd")


def test_an_address_is_not_fetched() -> None:
    assert failure_of(Address("https://example.org/a.png")) == (
        ErrorKind.REFUSED,
        "https://example.org/a.png: is an address; give --allow-remote to fetch it, or download it first",
    )


def test_a_worker_that_reads_images_does_not_load_pyarrow() -> None:
    """Its memory would be held for nothing, in each of them."""
    code = "import sys, batchcap.engines.vision_worker; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
