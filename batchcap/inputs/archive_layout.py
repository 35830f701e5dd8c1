"""Owns which members of an archive's samples mean what for a job: image, id, passthrough."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.errors import UsageError
from batchcap.inputs.columns import ALL_COLUMNS, column_options, listed, output_names, quoted, shown
from batchcap.inputs.members import CLASS, KEY_COLUMN, is_image
from batchcap.inputs.partitions import partition_values
from batchcap.inputs.samples import COLUMNS, GROUPED, NUMBERS


@dataclass(frozen=True, slots=True)
class ArchiveLayout:
    """Which members mean what.

    Attributes:
        has_columns: whether the archive has any; one of images alone has its keys, where a job asks for them.
        image: extension of the image; None: the first member that is one.
        has_key_ids: whether the keys alone are the ids.
        has_numbers: whether all of its classes are whole numbers.
        columns: all that there are, with their types.
        kept: the columns to carry, with their types; any may hold nulls.
        kept_as: their names in the output.
        folders: values of the columns that the names of the archive's folders hold.
    """

    has_columns: bool
    image: str | None
    has_key_ids: bool
    has_numbers: bool
    columns: pa.Schema
    kept: pa.Schema
    kept_as: tuple[str, ...]
    folders: dict[str, str | None]


def archive_layout(
    path: Path, index: pa.Table, config: InputConfig, own_columns: frozenset[str] = frozenset()
) -> ArchiveLayout:
    """Decide what of an archive is used.

    Args:
        path: the archive.
        index: of it.
        config: which columns were asked for.
        own_columns: names in the output that carried columns can't have.

    Raises:
        UsageError: a column that was named is missing.
    """
    about = index.schema.metadata
    names = [KEY_COLUMN, *about[COLUMNS].decode().split()]
    folders = {name: value for name, value in partition_values(path.parent).items() if name not in names}
    names += folders
    is_grouped = bool(about[GROUPED])
    if is_grouped:
        _require_columns(path, index, config, names)
    asked = [name for _option, name in column_options(config)]
    wanted = names if ALL_COLUMNS in config.keep_columns else list(dict.fromkeys(config.keep_columns))
    kept = [name for name in wanted if name in names]  # of images alone: what another input has is null here
    class_type = pa.int64() if about[NUMBERS] else pa.string()
    columns = pa.schema([(name, class_type if name == CLASS else pa.string()) for name in names])
    return ArchiveLayout(
        has_columns=is_grouped or bool(kept) or KEY_COLUMN in asked,
        image=config.image_column.lower() if is_grouped and config.image_column is not None else None,
        has_numbers=bool(about[NUMBERS]),
        has_key_ids=config.id_column == KEY_COLUMN,
        columns=columns,
        kept=pa.schema([columns.field(name) for name in kept]),
        kept_as=output_names(path, kept, own_columns),
        folders=folders,
    )


def _require_columns(path: Path, index: pa.Table, config: InputConfig, names: list[str]) -> None:
    """Refuse what was asked for by a name that no sample has."""
    if config.id_column not in (None, KEY_COLUMN):
        raise UsageError(
            f"{shown(path)} has no column {quoted(str(config.id_column))} (--id-column): its samples have a key, "
            f"{KEY_COLUMN}, to use as id"
        )
    for name in config.keep_columns:
        if name not in (*names, ALL_COLUMNS):
            raise UsageError(
                f"{shown(path)} has no column {quoted(name)} (--keep-columns): name one of {listed(names)}"
            )
    if config.image_column is not None:
        found = pa.concat_arrays([chunk.flatten().field("extension") for chunk in index["members"].chunks]).unique()
        images = [name for name in found.to_pylist() if is_image(name)]
        if config.image_column.lower() not in images:
            raise UsageError(
                f"{shown(path)} has no image with the extension {quoted(config.image_column)} (--image-column): name "
                f"one of {listed(images)}"
            )
