"""Owns the part files: one Parquet file a shard, in manifest order, written once, whole or not at all."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.manifest.shard import Shard
from batchcap.records import CaptionRow
from batchcap.store.atomic import atomic_file, storage_error

log = logging.getLogger(__name__)

FORMAT_VERSION = "2"  # 2: the column `thinking`
FORMAT_KEY = "batchcap.format_version"
SPAN_KEY = "batchcap.rows"
TALLY_KEY = "batchcap.tally"  # counts of the part, as JSON: totals need not read the rows

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("thinking", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("verdict", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("error_kind", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("visual_tokens", pa.int32()),
        pa.field("new_tokens", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("image_sha256", pa.string()),
        pa.field("read_ms", pa.float32()),
        pa.field("vision_ms", pa.float32()),
        pa.field("prefill_ms", pa.float32()),
        pa.field("decode_ms", pa.float32()),
    ]
)


def write_part(
    path: Path, shard: Shard, rows: list[CaptionRow], columns: pa.Table | None, metadata: dict[str, str]
) -> None:
    """Write a shard's part file.

    Args:
        path: the part file.
        shard: the shard, all of whose rows are given.
        rows: its rows in order.
        columns: input columns to carry, one row for each row; their names don't clash with ours.
        metadata: key-value metadata of the file, beside the shard's place.

    Raises:
        StorageError: the file system refused.
        ValueError: rows are missing.
    """
    for what, given in (("rows", rows), ("rows of carried columns", columns)):
        if given is not None and len(given) != shard.rows:
            raise ValueError(f"part {shard.seq} wants {shard.rows} {what}, not {len(given)}")
    table = pa.Table.from_pydict({name: [getattr(row, name) for row in rows] for name in SCHEMA.names}, schema=SCHEMA)
    if columns is not None:
        for field, values in zip(columns.schema, columns.columns, strict=True):
            table = table.append_column(field, values)
    known = table.schema.metadata or {}
    own = {FORMAT_KEY: FORMAT_VERSION, SPAN_KEY: _span_text(shard)}
    table = table.replace_schema_metadata({**known, **metadata, **own})
    with atomic_file(path) as temporary:
        try:
            pq.write_table(table, temporary, compression="zstd")
        except pa.ArrowException as error:
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise storage_error(path, cause) from error


def part_is_complete(path: Path, shard: Shard) -> bool:
    """Whether a shard's part is there and whole; a damaged one is reported, and its rows are captioned again."""
    if not path.exists():
        return False
    try:
        file = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        log.warning("%s is damaged (%s): its rows are captioned again", path, error)
        return False
    found = (file.metadata or {}).get(SPAN_KEY.encode(), b"").decode(errors="replace")
    if found != _span_text(shard) or file.num_rows != shard.rows:
        log.warning("%s is not the part of this job's rows %s: they are captioned again", path, _span_text(shard))
        return False
    return True


def part_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of a part file that is complete."""
    metadata = pq.read_metadata(path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"batchcap.")}


def _span_text(shard: Shard) -> str:
    return f"{shard.first_row}+{shard.rows}"
