"""What a manifest's cell that is no usable path holds is said, and what to do; a file of an odd name is found."""

import base64
import os
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.records import ImageRow
from batchcap.core.sources import Address, Bytes, FileAt
from batchcap.inputs.cells import PathBase, image_of_text
from batchcap.inputs.encoded import read_encoded
from tests.images.samples import encode, noise
from tests.inputs.parquets import IMAGE_STRUCT, read_layout, write_table
from tests.inputs.test_parquet import planned, rows_of

JPEG = base64.b64encode(encode(noise(40, 40), "JPEG")).decode()
PNG = base64.b64encode(encode(noise(4, 4), "PNG")).decode()

CELLS = {
    "file://server/data/a.png": "is a file:// address of another machine: write where the file is on this one",
    "file:a.png": "begins with file: and is no address of a file here",
    "~/a.png": "begins with ~, which is not expanded in manifests: write the whole path",
    "~other/a.png": "begins with ~, which is not expanded in manifests: write the whole path",
    "$HOME/a.png": "has a variable, which is not expanded",
    "C:\\photos\\a.png": "holds a path of Windows",
    "c:/photos/a.png": "holds a path of Windows",
    "\\\\server\\photos\\a.png": "holds a path of Windows",
    '"a.png"': "has quotes around the path: remove them",
    "“a.png”": "has quotes around the path: remove them",
    "'/data/a.png": "has quotes around the path: remove them",
    "a.png ": "has blanks around the path: strip them",
    " /data/a.png": "has blanks around the path: strip them",
    "a.png\r": "has blanks around the path: strip them",
    " 'a.png'": "has blanks around the path: strip them, has quotes around the path: remove them",
    "   ": "is blank: leave it null",
    "a.png\0\0\0": "has a NUL character: remove it",
    "a\0.png": "has a NUL character: remove it",
    "a%20b.png": "has characters written as %20",
    "['a.png', 'b.png']": "holds a list or an object as text: give each image a row of its own",
    "b'\\xff\\xd8\\xff\\xe0'": "holds bytes written as text (b'…'): store the bytes themselves",
    f'"data:image/jpeg;base64,{JPEG}"': "the cell holds a data: URI of image/jpeg: decode",
    base64.b64encode(encode(noise(90, 90), "PNG")).decode()
    + "*": "is base64 text that does not decode: it was cut or changed",
    "data:image/png;base64,a": "is base64 text that does not decode: it was cut or changed",
    "x" * 5000: "5000 characters are no path; name the column that holds images or paths with --image-column",
}


def failure(row: ImageRow) -> tuple[ErrorKind, str]:
    with pytest.raises(RowError) as caught:
        read_encoded(row)
    return caught.value.kind, caught.value.message


@pytest.mark.parametrize("is_struct", [False, True])
@pytest.mark.parametrize("has_root", [False, True])
def test_what_a_cell_holds_is_said(tmp_path: Path, has_root: bool, is_struct: bool) -> None:
    cells = [*CELLS, "absent.png"]
    column = pa.array([{"bytes": None, "path": cell} for cell in cells], IMAGE_STRUCT) if is_struct else cells
    write_table(tmp_path / "a.parquet", {"image": column})
    with planned(tmp_path, **({"image_root": str(tmp_path)} if has_root else {})) as plan:
        failures = [failure(row) for row in rows_of(plan)]
    for (cell, text), (kind, message) in zip(CELLS.items(), failures, strict=False):
        assert text in message
        assert len(message) < 500
        assert kind in (ErrorKind.MISSING, ErrorKind.REFUSED, ErrorKind.UNREADABLE, ErrorKind.CORRUPT), cell
    assert failures[-1] == (ErrorKind.MISSING, f"{tmp_path / 'absent.png'}: No such file or directory")


@pytest.mark.parametrize("is_struct", [False, True])
def test_images_written_as_text(tmp_path: Path, is_struct: bool) -> None:
    """Base64 as people write it, and `data:` URIs."""
    encoded = encode(noise(90, 90), "PNG")
    text = base64.b64encode(encoded).decode()
    cells = [
        text,
        text.rstrip("="),
        text.replace("+", "-").replace("/", "_"),
        "\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n",
        f"data:image/png;base64,{text}",
        f"DATA:image/png;charset=x;base64,{text.replace('+', '%2B')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in encoded),
    ]
    column = pa.array([{"bytes": None, "path": cell} for cell in cells], IMAGE_STRUCT) if is_struct else cells
    write_table(tmp_path / "a.parquet", {"image": column})
    with planned(tmp_path) as plan:
        assert [read_encoded(row) == encoded for row in rows_of(plan)] == [True] * len(cells)


def test_addresses_of_files_and_paths_of_windows(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a b.png").write_bytes(b"x")
    uri = (tmp_path / "sub/a b.png").as_uri()
    cells = [uri, uri.replace("file://", "file://localhost"), uri.replace("file://", "FILE:"), "sub\\a b.png"]
    (tmp_path / "in").mkdir()
    write_table(tmp_path / "in/a.parquet", {"path": cells})
    for root in (tmp_path, tmp_path / "sub/.."):
        with planned(tmp_path / "in", image_root=str(root)) as plan:
            assert [read_encoded(row) for row in rows_of(plan)] == [b"x"] * len(cells)


@pytest.mark.parametrize("cell", ["file:///etc/passwd", "..\\secret", "sub\\..\\..\\secret"])
def test_no_way_of_writing_leads_out_of_the_root(tmp_path: Path, cell: str) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    write_table(tmp_path / "in/a.parquet", {"path": [cell]})
    with planned(tmp_path / "in", image_root=str(tmp_path / "in")) as plan:
        (row,) = rows_of(plan)
    assert failure(row)[0] is ErrorKind.REFUSED


def test_files_of_odd_names_are_found(tmp_path: Path) -> None:
    names = ["a\\b.png", " a.png ", "~a.png", "'a.png'", "$a.png", "C:\\a.png", "a%20b.png", "[a]", PNG[:200]]
    for name in names:
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "in").mkdir()
    write_table(tmp_path / "in" / "a.parquet", {"path": names})
    with planned(tmp_path / "in", image_root=str(tmp_path / "files")) as plan:
        assert [read_encoded(row).decode() for row in rows_of(plan)] == names


def test_a_folder_or_a_file_without_permission_gets_no_hint(tmp_path: Path) -> None:
    (tmp_path / "~folder").mkdir()
    write_table(tmp_path / "a.parquet", {"path": ["~folder"]})
    with planned(tmp_path) as plan:
        assert [failure(row)[1] for row in rows_of(plan)] == [f"{tmp_path}/~folder: is a folder, not an image file"]


LISTS = {
    "paths": (pa.list_(pa.string()), "a list of images: caption the first of each list or each one"),
    "bytes": (pa.large_list(pa.binary()), "a list of images: caption the first of each list or each one"),
    "images": (pa.list_(IMAGE_STRUCT, 2), "a list of images: caption the first of each list or each one"),
    "views": (pa.list_view(pa.binary()), "a list of images: caption the first of each list or each one"),
    "numbers": (pa.list_(pa.uint8()), "lists of numbers are not read as an image: store the bytes of a JPEG or PNG"),
    "pixels": (pa.list_(pa.list_(pa.float32())), "lists of numbers are not read as an image"),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_images_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    kind, text = LISTS[name]
    path = write_table(tmp_path / "a.parquet", {"images": pa.nulls(2, kind), "embedding": [[1.0], [2.0]]})
    with pytest.raises(UsageError) as named:
        read_layout(path, InputConfig(("x",), image_column="images"))
    assert f"column 'images' of {path} is" in str(named.value)
    with pytest.raises(UsageError, match="has no column with images") as found:
        read_layout(path, InputConfig(("x",)))
    assert text in str(named.value)
    assert f"'images': {text}" in str(found.value)
    assert "'embedding'" not in str(found.value)


IMAGES = st.binary(max_size=90).map(lambda content: b"\x89PNG\r\n\x1a\n" + content)


@given(
    IMAGES,
    st.integers(1, 80),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "data:image/png;base64,", "DATA:;base64,"]),
)
def test_any_image_as_text(content: bytes, width: int, is_url_safe: bool, is_padded: bool, header: str) -> None:
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(content).decode()
    text = text if is_padded else text.rstrip("=")
    lines = "\n".join(text[start : start + width] for start in range(0, len(text), width))
    if header or len(text) > 40:
        assert image_of_text(header + lines, PathBase(Path("/nowhere"))) == Bytes(content)
    assert image_of_text("data:," + quote(content), PathBase(Path("/nowhere"))) == Bytes(content)


@given(
    st.text(max_size=40)
    | st.builds("".join, st.lists(st.sampled_from([*"%/\\:,;=\0 ~$'", "file:", "data:", "..", JPEG])))
)
def test_any_text_is_something_inside_of_the_root(tmp_path_factory: pytest.TempPathFactory, cell: str) -> None:
    root = tmp_path_factory.getbasetemp()
    found = image_of_text(cell, PathBase(root, str(root.resolve())))
    if isinstance(found, FileAt) and "\0" not in found.path:
        assert Path(os.path.realpath(found.path)).is_relative_to(root.resolve())
    assert isinstance(found, FileAt | Bytes | Address | tuple)


@given(
    st.lists(st.sampled_from(["a", "b c", "é", "%41", "x=y"]), min_size=1, max_size=3),
    st.sampled_from(["file:", "file://", "file://localhost", "FILE:"]),
)
def test_any_address_of_a_file(parts: list[str], scheme: str) -> None:
    path = "/" + "/".join(parts)
    found = image_of_text(scheme + quote(path), PathBase(Path("/nowhere")))
    assert isinstance(found, FileAt)
    assert found.path == path
