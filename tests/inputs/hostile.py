"""Parquet files that are damaged or lie, made from good ones."""

from pathlib import Path

import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_I64_FIELD = b"\x16"  # Thrift's compact protocol: the next field, of type i64


def footer_of(content: bytes) -> bytes:
    """The footer of a Parquet file."""
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


def with_footer(content: bytes, footer: bytes) -> bytes:
    """A Parquet file with another footer."""
    head = content[: -8 - len(footer_of(content))]
    return head + footer + len(footer).to_bytes(4, "little") + _MAGIC


def varint(number: int) -> bytes:
    """A number as Thrift writes it: zigzag, seven bits a byte, the lowest first."""
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def lie_about(path: Path, honest: int, claimed: int, places: slice = slice(None)) -> None:
    """Let a footer claim another number, at some of the places where it has the honest one.

    A number of rows comes first for the whole file, then for each column of a row group, then for the row group.
    """
    content = path.read_bytes()
    pieces = footer_of(content).split(_I64_FIELD + varint(honest))
    numbers = [honest] * (len(pieces) - 1)
    assert numbers[places], "nothing to lie about"
    numbers[places] = [claimed] * len(numbers[places])
    footer = pieces[0] + b"".join(
        _I64_FIELD + varint(number) + piece for number, piece in zip(numbers, pieces[1:], strict=True)
    )
    path.write_bytes(with_footer(content, footer))


def damage_pages(path: Path, group: int, column: int) -> None:
    """Overwrite the data of one column in one row group; the footer stays as it is."""
    chunk = pq.read_metadata(path).row_group(group).column(column)
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * chunk.total_compressed_size)
