"""The readers as targets: each takes an input in, or refuses it with an error of ours; anything else is a crash."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from batchcap.commands.jobfile import load_job_file
from batchcap.config import InputConfig
from batchcap.core.errors import RowError
from batchcap.core.sources import Piece
from batchcap.inputs.archive import ArchiveFiles
from batchcap.inputs.delimited import CsvFiles
from batchcap.inputs.encoded import read_encoded
from batchcap.inputs.jsonl import JsonlFiles
from batchcap.inputs.parquet import ParquetFiles
from batchcap.inputs.passthrough import fitted_columns, passthrough_schema, require_values_fit
from batchcap.inputs.table_files import TableFiles
from batchcap.inputs.tar import TarFiles
from batchcap.inputs.zip_archive import ZipFiles
from batchcap.store.parts import SCHEMA
from tests.fuzz.target import Target
from tests.images.raws import dng, jpeg_preview, sensor
from tests.images.samples import encode, load, noise, scene
from tests.inputs.archives import link, tar_bytes, zip_bytes
from tests.inputs.parquets import IMAGE_STRUCT

# A few more pixels than the seeds have: a header that claims more is refused, as it is in a job.
MAX_PIXELS = 4_000_000
# A footer may claim a thousand million rows, and each of them would be read.
MAX_ROWS = 2000
JOBS = Path(__file__).parents[2] / "jobs"


def image_seeds() -> list[bytes]:
    """Small images in every format and in the modes that take other ways through the decoders."""
    small, grey = scene(96, 64), scene(48, 40).convert("L")
    found = [
        encode(small, "PNG"),
        encode(small.quantize(8), "PNG"),
        encode(small.convert("RGBA"), "PNG", dpi=(72, 72), icc_profile=b"x" * 200),
        encode(grey.convert("I;16"), "PNG"),
        encode(small, "JPEG"),
        encode(small, "JPEG", progressive=True, subsampling=2, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        encode(small.convert("CMYK"), "JPEG"),
        encode(small, "WEBP"),
        encode(small.convert("RGBA"), "WEBP", lossless=True),
        encode(small, "WEBP", save_all=True, append_images=[noise(96, 64)]),
        encode(small, "GIF", save_all=True, append_images=[noise(96, 64)]),
        encode(small, "BMP"),
        encode(small.quantize(8), "BMP"),
        encode(small, "PPM"),
        encode(small, "ICO", sizes=[(32, 32), (16, 16)]),
        encode(small, "JPEG2000"),
    ]
    found += [
        encode(small, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    ]
    found.append(encode(small.convert("1"), "TIFF", compression="group4"))
    return found + [encode(small, kind) for kind in ("AVIF", "QOI") if kind in Image.SAVE]


def raw_seeds() -> list[bytes]:
    """Small camera raw files: of the preview, and of the raw image since there is none or a small one."""
    preview = jpeg_preview(scene(96, 64))
    return [
        dng([sensor(96, 64), preview], orientation=6),
        dng([sensor(96, 64, order=">"), preview], order=">"),
        dng([preview, sensor(96, 64)], thumbnail=noise(8, 6)),
        dng([sensor(96, 64)]),
        dng([sensor(128, 96), jpeg_preview(scene(32, 24))], orientation=8),
    ]


def read_image(content: bytes, _path: Path) -> None:
    """The image stage."""
    patches = load(content, max_image_pixels=MAX_PIXELS)
    assert len(patches.values) == patches.grid[0] * patches.grid[1]


def parquet_seeds() -> list[bytes]:
    """Small Parquet files of every kind of image column, cut, packed and encoded differently."""
    cells = [None if row % 11 == 3 else bytes([row]) * (row % 40) for row in range(120)]
    paths = [None if cell is None else f"{len(cell)}.png" for cell in cells]
    structs = [None if cell is None else {"bytes": cell, "path": "x.png"} for cell in cells]
    carried = {
        "key": [f"key {row % 7}" for row in range(120)],
        "number": list(range(120)),
        "tags": [["a"] * (row % 3) for row in range(120)],
        "when": pa.array(range(120), pa.timestamp("us", "UTC")),
        "large": pa.array([[f"tag {row}"] for row in range(120)], pa.large_list(pa.large_string())),
        "strict": pa.array([{"a": 1.5}] * 120, pa.struct([pa.field("a", pa.float16(), nullable=False)])),
    }
    images = {
        "bytes": pa.array(cells, pa.binary()),
        "struct": pa.array(structs, IMAGE_STRUCT),
        "large": pa.array(cells, pa.large_binary()),
        "path": pa.array(paths, pa.string()),
        "dictionary": pa.array(paths, pa.string()).dictionary_encode(),
    }
    ways = (
        {"row_group_size": 50},
        {"row_group_size": 50, "compression": "zstd", "data_page_version": "2.0", "write_page_index": True},
        {"compression": "none", "use_dictionary": False, "data_page_size": 100, "write_page_checksum": True},
        {"compression": "gzip", "store_schema": False, "use_deprecated_int96_timestamps": True},
        {"compression": "none", "use_dictionary": False, "column_encoding": {"number": "DELTA_BINARY_PACKED"}},
    )
    found = []
    for images_of, (_kind, column) in enumerate(images.items()):
        for way in (ways[images_of], ways[(images_of + 1) % len(ways)]):
            buffer = io.BytesIO()
            pq.write_table(pa.table({"image": column, **carried}), buffer, **way)
            found.append(buffer.getvalue())
    return found


def jsonl_seeds() -> list[bytes]:
    """Small JSONL files: values of one type and of several, escapes, nesting, other ends of lines."""
    rows = [
        {
            "path": f"{row}.png",
            "key": f"é {row}",
            "n": row,
            "x": row / 3,
            "tags": ["a"] * (row % 3),
            "o": {"b": row > 5},
        }
        for row in range(40)
    ]
    mixed = [{**row, "n": [None, 1, "1", 2**70, {"a": [1.5]}][index % 5]} for index, row in enumerate(rows)]
    found = []
    for some, ends in ((rows, b"\n"), (mixed, b"\r\n\n")):
        for is_ascii in (True, False):
            lines = [json.dumps(row, ensure_ascii=is_ascii).encode() for row in some]
            found.append(ends.join(lines))
    return [*found, b"\xef\xbb\xbf" + found[0]]


def delimited_seeds() -> list[bytes]:
    """Small CSV files: with and without quotes, and newlines inside of them."""
    plain = [f"{row}.png,key {row},{row},{row / 3},{'true' if row % 2 else ''}" for row in range(40)]
    quotes = [f'"{row}.png","a ""key""\n{row}","{row}",,"x,y"' for row in range(40)]
    header = "path,key,number,share,flag"
    return [ends.join([header, *lines]).encode() for lines in (plain, quotes) for ends in ("\n", "\r\n\n")]


def read_parquet(_content: bytes, path: Path) -> None:
    """The reader of Parquet."""
    read_table(ParquetFiles, path)


def read_jsonl(content: bytes, path: Path) -> None:
    """The reader of JSONL."""
    read_text(JsonlFiles, content, path)


def read_csv(content: bytes, path: Path) -> None:
    """The reader of CSV."""
    read_text(CsvFiles, content, path)


def read_text(kind: type[TableFiles], content: bytes, path: Path) -> None:
    """A reader that keeps an index: two files of one name and size may be of one moment, so each has its own name."""
    own = path.with_name(hashlib.sha256(content).hexdigest())
    own.write_bytes(content)
    try:
        read_table(kind, own)
    finally:
        own.unlink()


def read_table(kind: type[TableFiles], path: Path) -> None:
    """The manifest's readers, and what a part file would be made of."""
    reader = kind(InputConfig((str(path),), id_column="key", keep_columns=("*",)), frozenset(SCHEMA.names))
    rows = min(reader.count(path), MAX_ROWS)
    passthrough = reader.passthrough(path)
    piece = Piece(0, "a", str(path), reader.kind, 0, rows)
    found = list(reader.rows(piece, range(rows))) if rows else []
    assert [row.row for row in found] == list(range(rows))
    columns = reader.columns(piece)
    assert len(columns) == rows
    schema = passthrough_schema([passthrough], None)
    require_values_fit(reader, passthrough, schema, is_written=False)
    pq.write_table(fitted_columns(columns, schema, path), io.BytesIO())


def archive_members() -> dict[str, bytes]:
    """A shard of samples with everything that has a meaning beside an image."""
    found: dict[str, bytes] = {}
    for row in range(6):
        key = f"part/{row:04d}"
        found |= {f"{key}.jpg": bytes([row]) * 40, f"{key}.txt": b"a text", f"{key}.cls": b"%d" % row}
        found |= {f"{key}.left.png": b"left", f"{key}.json": b"{}"} if row % 2 else {}
    return found


def tar_seeds() -> list[bytes]:
    """Small tar archives in every format, packed or not, with long names, links and images alone."""
    members = archive_members()
    long = {**members, "d/" * 90 + "long.jpg": b"x", "é.jpg": b"y"}
    linked = [*members.items(), link("z.jpg"), link("z.txt", tarfile.LNKTYPE)]
    found = [tar_bytes(long, format=form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    found += [tar_bytes(linked, format=tarfile.USTAR_FORMAT), tar_bytes({f"{row}.png": b"1" for row in range(9)})]
    return found + [gzip.compress(content, mtime=0) for content in found[1:3]]


def zip_seeds() -> list[bytes]:
    """Small zip archives, packed in every way that is read."""
    members = archive_members()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return [zip_bytes(members, method) for method in methods] + [zip_bytes({"é.jpg": b"1", "b.png": b"2"})]


def read_archive(kind: type[ArchiveFiles]) -> Callable[[bytes, Path], None]:
    """The reader of a kind of archives; indexes are not kept."""

    def read(_content: bytes, path: Path) -> None:
        os.environ["BATCHCAP_CACHE"] = os.devnull
        reader = kind(InputConfig((str(path),), keep_columns=("*",)), frozenset(SCHEMA.names))
        rows = min(reader.count(path), MAX_ROWS)
        passthrough = reader.passthrough(path)
        piece = Piece(0, "a", str(path), reader.kind, 0, rows)
        found = list(reader.rows(piece, range(rows))) if rows else []
        assert [row.row for row in found] == list(range(rows))
        assert len({row.id for row in found}) == rows
        for row in found:
            with suppress(RowError):
                read_encoded(row)
        columns = reader.columns(piece) if rows else None
        if passthrough is not None and columns is not None:
            assert len(columns) == rows
            pq.write_table(fitted_columns(columns, passthrough_schema([passthrough], None), path), io.BytesIO())

    return read


def job_seeds() -> list[bytes]:
    """The examples of job files."""
    return [path.read_bytes() for path in sorted(JOBS.glob("*.toml"))]


def read_job(_content: bytes, path: Path) -> None:
    """The loader of job files."""
    load_job_file(path)


READERS = (
    Target("picture", image_seeds, read_image),
    Target("raw", raw_seeds, read_image),
    Target("parquet", parquet_seeds, read_parquet),
    Target("jsonl", jsonl_seeds, read_jsonl, is_lenient=True),
    Target("csv", delimited_seeds, read_csv, is_lenient=True),
    Target("tar", tar_seeds, read_archive(TarFiles)),
    Target("zip", zip_seeds, read_archive(ZipFiles)),
    Target("jobfile", job_seeds, read_job),
)
