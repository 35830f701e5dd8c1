"""Owns the part files: one Parquet file a shard, in manifest order, written once, whole or not at all."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.core.atomic import atomic_file, storage_error
from batchcap.core.errors import StorageError
from batchcap.core.records import CaptionRow, PromptColumns, Shard, Status, Verdict, with_enums
from batchcap.core.row_counts import RowCounts

log = logging.getLogger(__name__)

FORMAT_VERSION = "2"  # 2: the column `thinking`
FORMAT_KEY = "batchcap.format_version"
SPAN_KEY = "batchcap.rows"
PROMPTS_KEY = "batchcap.prompts"  # names of the prompts, as JSON
TALLY_KEY = "batchcap.tally"  # counts of the part, as JSON: totals need not read the rows
SETTINGS_KEY = "batchcap.settings"  # what decided the captions, as JSON
RETRIES_KEY = "batchcap.retries"  # a list, as JSON: what was set otherwise where rows were captioned again

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


_OF_A_PROMPT = frozenset(field.name for field in fields(PromptColumns))
UNNAMED = ("",)


def column_name(column: str, prompt: str) -> str:
    """The name of a prompt's column: the prompt's name at its end, or as it is where the prompt has none."""
    return f"{column}_{prompt}" if prompt else column


def output_schema(prompts: Sequence[str]) -> pa.Schema:
    """Our columns of a part for prompts of these names: `SCHEMA`, with a prompt's own columns once for each of them."""
    return pa.schema([field for field, _column, _place in _layout(prompts)])


def _layout(prompts: Sequence[str]) -> list[tuple[pa.Field, str, int]]:
    """Each output column, the field of a row it holds, and which prompt's that is."""
    return [
        (field.with_name(column_name(field.name, name)), field.name, index)
        for field in SCHEMA
        for index, name in enumerate(prompts if field.name in _OF_A_PROMPT else UNNAMED)
    ]


def write_part(
    path: Path,
    shard: Shard,
    rows: list[CaptionRow],
    columns: pa.Table | None,
    metadata: dict[str, str],
    prompts: Sequence[str] = UNNAMED,
) -> None:
    """Write a shard's part file.

    Args:
        path: the part file.
        shard: the shard, all of whose rows are given.
        rows: its rows in order.
        columns: input columns to carry, one row for each row; their names don't clash with ours.
        metadata: key-value metadata of the file, beside the shard's place and the names of the prompts.
        prompts: names of the prompts.

    Raises:
        StorageError: the file system refused.
        ValueError: rows are missing.
    """
    for what, given in (("rows", rows), ("rows of carried columns", columns)):
        if given is not None and len(given) != shard.rows:
            raise ValueError(f"part {shard.seq} wants {shard.rows} {what}, not {len(given)}")
    layout = _layout(prompts)
    fields = [field for field, _column, _place in layout]
    arrays = [pa.array(_values(rows, column, index), field.type) for field, column, index in layout]
    if columns is not None:
        fields += columns.schema
        arrays += columns.columns
    own = {FORMAT_KEY: FORMAT_VERSION, SPAN_KEY: span_text(shard), PROMPTS_KEY: json.dumps(list(prompts))}
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, {**metadata, **own}))
    with atomic_file(path) as temporary:
        try:
            pq.write_table(table, temporary, compression="zstd")
        except pa.ArrowException as error:
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise storage_error(path, cause) from error


def _values(rows: list[CaptionRow], column: str, index: int) -> list[Any]:
    """A column's values; null for a further prompt of a failed row."""
    if index == 0:
        return [getattr(row, column) for row in rows]
    return [getattr(row.extra_prompts[index - 1], column) if row.extra_prompts else None for row in rows]


def read_part(path: Path) -> list[CaptionRow]:
    """The rows of a part file, in order.

    Raises:
        StorageError: the operating system refused, or the file is damaged; the message tells which.
    """
    layout = _layout(prompt_names(path))
    with readable_part(path):
        table = pq.read_table(path, columns=[field.name for field, _column, _place in layout])
    return [_row_of(values, layout) for values in table.to_pylist()]


def read_row(path: Path, index: int) -> CaptionRow:
    """One row of a part file.

    Args:
        path: the part file.
        index: the row in it, from 0.

    Raises:
        StorageError: as `read_part` does.
    """
    layout = _layout(prompt_names(path))
    with readable_part(path):
        table = pq.read_table(path, columns=[field.name for field, _column, _place in layout]).slice(index, 1)
    (values,) = table.to_pylist()
    return _row_of(values, layout)


def _row_of(values: dict[str, Any], layout: list[tuple[pa.Field, str, int]]) -> CaptionRow:
    own: list[dict[str, Any]] = [{} for _prompt in range(1 + max(prompt for _field, _column, prompt in layout))]
    for field, column, prompt in layout:
        own[prompt][column] = values[field.name]
    first, *others = map(with_enums, own)
    extra = tuple(PromptColumns(**one) for one in others) if first["status"] is Status.OK else ()
    return CaptionRow(**first, extra_prompts=extra)


def read_passthrough(path: Path) -> pa.Table | None:
    """The input columns that a part file carries; None where there are none. Raises as `read_part` does."""
    own = set(output_schema(prompt_names(path)).names)
    with readable_part(path):
        passthrough = [name for name in pq.read_schema(path).names if name not in own]
        return pq.read_table(path, columns=passthrough) if passthrough else None


def passthrough_schema(paths: Sequence[Path]) -> pa.Schema | None:
    """The input columns that the parts of a job carry; None where there is no part.

    Taken from the first and the last one: once, a file that came later could bring a column of its own with it. Parts
    that can't be read are not asked: their rows are captioned again.
    """
    ends = [_carried_fields(paths), _carried_fields(paths[::-1])]
    found = [fields for fields in ends if fields is not None]
    return pa.schema(list({name: kind for fields in found for name, kind in fields}.items())) if found else None


def _carried_fields(paths: Sequence[Path]) -> list[tuple[str, pa.DataType]] | None:
    for path in paths:
        with suppress(OSError, pa.ArrowException, StorageError, ValueError):
            own = set(output_schema(prompt_names(path)).names)
            return [(field.name, field.type) for field in pq.read_schema(path) if field.name not in own]
    return None


@contextmanager
def readable_part(path: Path) -> Iterator[None]:
    """Errors of reading a part as errors a person can act on: damage is told from trouble, which may be over soon."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if is_trouble(error):
            raise trouble(path, error) from error
        raise StorageError(
            f"the part {path} is damaged ({_reason(error)}): delete it and run the job again, which captions its rows "
            "again"
        ) from error


def is_trouble(error: Exception) -> bool:
    """Whether the operating system refused to read; else the file was read, and makes no sense."""
    return isinstance(error, OSError) and error.errno is not None


def trouble(path: Path, error: Exception) -> StorageError:
    """What to tell a person where the operating system refused to read a part."""
    return StorageError(
        f"can't read the part {path} ({_reason(error)}), and nothing was changed: check the disk, the mount and the "
        "permissions, then run the same command again"
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def first_failure(path: Path, kind: str) -> CaptionRow | None:
    """The first row of a part file that failed as this kind; None where none did. Raises as `read_part` does."""
    with readable_part(path):
        kinds = pq.read_table(path, columns=["error_kind"])["error_kind"].to_pylist()
        return read_row(path, kinds.index(kind)) if kind in kinds else None


def captioned_images(path: Path) -> list[tuple[int, str]]:
    """The rows of a part file that were captioned at the first try: place in it from 0, and the image's hex digest.

    Later tries may have had other settings.
    """
    with readable_part(path):
        table = pq.read_table(path, columns=["status", "attempts", "image_sha256"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return [(index, sha256) for index, (status, attempts, sha256) in enumerate(rows) if (status, attempts) == ("ok", 1)]


def well_rows(path: Path) -> list[bool]:
    """Of each row of a part file, whether it has captions and all of them are as captions should be."""
    columns = ["status", *(column_name("verdict", name) for name in prompt_names(path))]
    with readable_part(path):
        table = pq.read_table(path, columns=columns)
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return [status == Status.OK and set(verdicts) == {Verdict.OK} for status, *verdicts in rows]


def part_counts(path: Path) -> RowCounts:
    """The counts of a part file's rows, without reading them. Raises as `read_part` does."""
    return RowCounts.from_dict(json.loads(part_metadata(path)[TALLY_KEY]))


def has_captions(path: Path) -> bool:
    """Whether any row of a part file has a caption. Raises as `read_part` does."""
    with readable_part(path):
        return bool(json.loads(part_metadata(path)[TALLY_KEY])["ok"])


def prompt_names(path: Path) -> tuple[str, ...]:
    """The names of the prompts a part file answers, in the order of their columns."""
    return tuple(json.loads(part_metadata(path).get(PROMPTS_KEY, '[""]')))


def part_is_complete(path: Path, shard: Shard) -> bool:
    """Whether a shard's part is there and whole; a damaged one is reported, and its rows are captioned again.

    Raises:
        StorageError: the operating system refused to read it. That may be over soon: it is no damage.
    """
    try:
        path.stat()
        file = pq.read_metadata(path)
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowException) as error:
        if is_trouble(error):
            raise trouble(path, error) from error
        log.warning("%s is damaged (%s): a run of the job captions its rows again", path, _reason(error))
        return False
    found = (file.metadata or {}).get(SPAN_KEY.encode(), b"").decode(errors="replace")
    if found != span_text(shard) or file.num_rows != shard.rows:
        log.warning("%s does not hold the job's rows %s: a run of the job captions them again", path, span_text(shard))
        return False
    return True


def part_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of a part file that is complete. Raises as `read_part` does."""
    with readable_part(path):
        metadata = pq.read_metadata(path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"batchcap.")}


def retried_metadata(before: dict[str, str], now: dict[str, str], settings: Sequence[str]) -> dict[str, str]:
    """The metadata of a part of which some rows were captioned again.

    Args:
        before: that of the part until now.
        now: that of a part written by this run.
        settings: as JSON, those with which rows were captioned again, where they are not the job's.
    """
    retries = json.loads(before.get(RETRIES_KEY, "[]"))
    retries += [one for one in map(json.loads, settings) if one not in retries]
    kept = {SETTINGS_KEY: before[SETTINGS_KEY]} if SETTINGS_KEY in before else {}
    return {**now, **kept, **({RETRIES_KEY: json.dumps(retries)} if retries else {})}


def span_text(shard: Shard) -> str:
    """Which rows of the job a part holds, as its metadata says it."""
    return f"{shard.first_row}+{shard.rows}"
