"""Owns copies of part files for another place in another job: the same rows, other words about them."""

import json
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.core.atomic import atomic_file, storage_error
from batchcap.core.records import Shard
from batchcap.store.parts import SETTINGS_KEY, SPAN_KEY, readable_part, span_text


def part_schema(path: Path) -> pa.Schema:
    """Columns and types of a part, without what it says of itself. Raises as `store.parts.read_part` does."""
    with readable_part(path):
        return pq.read_schema(path).remove_metadata()


def copy_part(source: Path, target: Path, shard: Shard, fingerprint: dict[str, object]) -> None:
    """Write a part once more, row group by row group.

    Args:
        source: the part, which is whole.
        target: the copy.
        shard: its place in the other job.
        fingerprint: what decided the captions there.

    Raises:
        StorageError: the part can't be read, or the file system refused.
    """
    settings = json.dumps(fingerprint, ensure_ascii=False).encode(errors="backslashreplace").decode()
    with ExitStack() as opened:
        with readable_part(source):
            file = opened.enter_context(pq.ParquetFile(source))
            schema = file.schema_arrow
        said = {**(schema.metadata or {}), SPAN_KEY.encode(): span_text(shard), SETTINGS_KEY.encode(): settings}
        temporary = opened.enter_context(atomic_file(target))
        try:
            with pq.ParquetWriter(temporary, schema.with_metadata(said), compression="zstd") as writer:
                for group in range(file.num_row_groups):
                    with readable_part(source):
                        rows = file.read_row_group(group)
                    writer.write_table(rows)
        except pa.ArrowException as error:
            raise storage_error(target, OSError(str(error))) from error
