"""Owns the tar files for WebDataset: an image, its captions and a JSON object for each row, under one key."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from batchcap.core.atomic import atomic_file
from batchcap.outputs.folders import Made, PartFolder
from batchcap.outputs.form import FinishedPart, Written
from batchcap.outputs.lists import plain_rows
from batchcap.outputs.names import in_tree
from batchcap.outputs.pairs import CaptionedRows, Pair, dataset_columns
from batchcap.store.parts import column_name


class WebDataset(PartFolder):
    """A tar file for each part. The same rows give the same bytes."""

    name = "webdataset"
    suffix = "-webdataset"

    def make(self, part: FinishedPart, done: Written) -> Made:
        """Write the file of a part; none where no row has a caption."""
        rows = CaptionedRows(part, self.job.prompts, self.config.verdicts)
        pairs = rows.pairs(done)
        first = next(pairs, None)
        if first is None:
            return Made(done, ())
        has_verdicts = self.config.verdicts != ("ok",)
        columns = dataset_columns(rows.table, self.job.prompts, (), has_verdicts=has_verdicts)
        path = self.path / f"captions-{part.shard.seq:05d}.tar"
        with atomic_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for pair in chain([first], pairs):
                caption_columns = {name: column_name("caption", name) for name in self.job.prompts}
                (record,) = plain_rows(columns.slice(pair.place, 1))
                for name, content in _members(pair, record, caption_columns):
                    _add(tar, name, content)
        done.files = 1
        return Made(done, (path.name,))

    def conclude(self, parts: Sequence[FinishedPart], total: Written) -> None:
        """Nothing is about all files."""


def key_of(pair: Pair) -> str:
    """The key of a row: its id without what ends a key, and the row's number, so that no two rows have one."""
    path = in_tree(pair.row.id, Path(), full_names=False)
    return f"{path.as_posix().replace('.', '_')}-{pair.row.index}"


def _members(pair: Pair, record: dict[str, Any], captions: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of a row.

    Args:
        pair: the row.
        record: its columns.
        captions: the column of each prompt's captions.
    """
    key = key_of(pair)
    yield key + pair.suffix, pair.encoded
    for prompt, column in captions.items():
        if record[column] is not None:
            yield f"{key}.{prompt}.txt" if prompt else f"{key}.txt", record[column].encode(errors="replace")
    yield f"{key}.json", json.dumps(record, ensure_ascii=False).encode(errors="replace")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without a time and an owner
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
