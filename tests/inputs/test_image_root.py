"""Paths in a manifest: none leads out of `--image-root`, and no address is ever fetched."""

from pathlib import Path

import pyarrow as pa
import pytest

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.records import ImageRow
from batchcap.inputs.encoded import read_encoded
from tests.inputs.parquets import IMAGE_STRUCT, read_layout, write_table
from tests.inputs.test_parquet import planned, rows_of


def rows(folder: Path, cells: list[str], **settings: str) -> list[ImageRow]:
    (folder / "in").mkdir(exist_ok=True)
    path = write_table(folder / "in" / "a.parquet", {"path": cells})
    with planned(folder / "in", **settings) as plan:
        found = rows_of(plan)
    path.unlink()
    (folder / "in" / "journal.sqlite").unlink()
    return found


def outcome(row: ImageRow) -> bytes | ErrorKind:
    try:
        return read_encoded(row)
    except RowError as error:
        return error.kind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an image and links, beside a secret."""
    folder = tmp_path / "root"
    (folder / "below").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "secret").write_bytes(b"secret")
    (folder / "out.png").symlink_to("../secret")
    (folder / "out").symlink_to(tmp_path)
    (folder / "in.png").symlink_to("below/../a.png")
    (folder / "loop.png").symlink_to("loop.png")
    return folder


INSIDE = ["a.png", "./below/../a.png", "in.png", "out/root/a.png"]
OUTSIDE = [
    "../secret",
    "below/../../secret",
    "out.png",
    "out/secret",
    "../root-too/secret",
    "/etc/passwd",
    "/proc/self/environ",
    "..",
    "//",
    "../nowhere.png",
]


@pytest.mark.parametrize("name", ["root", "link"])
def test_no_path_leads_out_of_the_image_root(tmp_path: Path, root: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(root)
    given = str(tmp_path / name)
    found = rows(tmp_path, [*INSIDE, f"{given}/a.png", *OUTSIDE], image_root=given)
    assert [outcome(row) for row in found] == [b"inside"] * (len(INSIDE) + 1) + [ErrorKind.REFUSED] * len(OUTSIDE)
    assert {row.failure[1].partition(": ")[2] for row in found if row.failure} == {f"leads out of --image-root {given}"}


def test_an_image_struct_leads_no_further(tmp_path: Path, root: Path) -> None:
    (tmp_path / "in").mkdir()
    cells = pa.array([{"bytes": None, "path": path} for path in ("a.png", "../secret")], IMAGE_STRUCT)
    write_table(tmp_path / "in" / "a.parquet", {"image": cells})
    with planned(tmp_path / "in", image_root=str(root)) as plan:
        assert [outcome(row) for row in rows_of(plan)] == [b"inside", ErrorKind.REFUSED]


def test_without_an_image_root_paths_may_lead_anywhere(tmp_path: Path, root: Path) -> None:
    cells = ["../root/a.png", "../root/out.png", str(root / "a.png")]
    assert [outcome(row) for row in rows(tmp_path, cells)] == [b"inside", b"secret", b"inside"]


ADDRESSES = [
    "http://example.org/a.png",
    "https://example.org/a.png",
    "HTTPS://example.org/a.png",
    "s3://bucket/a.png",
    "hf://datasets/a/b.png",
    "file://server/etc/passwd",
    "gs://bucket/a.png",
]


@pytest.mark.parametrize("fenced", [True, False])
def test_addresses_are_refused(tmp_path: Path, root: Path, fenced: bool) -> None:
    found = rows(tmp_path, ADDRESSES, **({"image_root": str(root)} if fenced else {}))
    assert [outcome(row) for row in found] == [ErrorKind.REFUSED] * len(ADDRESSES)
    for row in found:
        with pytest.raises(RowError) as caught:
            read_encoded(row)
        message = caught.value.message
        assert ("of another machine" if message.startswith("file:") else "give --allow-remote") in message
        assert len(message) < 400


def test_what_is_no_path_at_all(tmp_path: Path, root: Path) -> None:
    cells = ["a\0b", "x" * 5000, "\x1b[2J\n" * 1000, "loop.png", "y" * 300, "surely: no address"]
    for settings in ({}, {"image_root": str(root)}):
        found = rows(tmp_path, cells, **settings)
        kinds = [outcome(row) for row in found]
        assert kinds[:3] == [ErrorKind.MISSING] * 3
        assert set(kinds[3:5]) <= {ErrorKind.MISSING, ErrorKind.UNREADABLE}
        assert kinds[5] is ErrorKind.MISSING
        assert all(row.failure[1].isprintable() and len(row.failure[1]) < 1000 for row in found if row.failure)


@pytest.mark.parametrize("name", ["nowhere", "root/a.png", "https://example.org"])
def test_an_image_root_must_be_a_folder(tmp_path: Path, root: Path, name: str) -> None:
    path = write_table(tmp_path / "a.parquet", {"path": ["x"]})
    with pytest.raises(UsageError, match="is no folder"):
        read_layout(path, InputConfig(("x",), image_root=str(tmp_path / name)))
