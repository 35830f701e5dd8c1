"""Owns which column of a table means what: image, id, passthrough."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.errors import UsageError
from batchcap.inputs.cells import PathBase, path_base
from batchcap.inputs.columns import ALL_COLUMNS, column_options, cut, listed, output_names, quoted, shown
from batchcap.inputs.table import list_value

PATH_NAMES = ("image", "image_path", "path", "file_name", "filename", "filepath", "file")
IMAGE_STRUCT, BYTES, PATH = 3, 2, 1


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Which columns of a table mean what.

    Attributes:
        image: column with the image.
        id: column with the row's id, or None.
        kept: the columns to carry, with their types in the file; any may hold nulls.
        kept_as: their names in the output.
        rank: what the image column holds: `IMAGE_STRUCT`, `BYTES` or `PATH`, or lists of them.
        has_lists: whether its cells are lists.
        paths: what paths start from.
    """

    image: str
    id: str | None
    kept: pa.Schema
    kept_as: tuple[str, ...]
    rank: int
    has_lists: bool
    paths: PathBase


def layout_of(
    path: Path, schema: pa.Schema, config: InputConfig, own_columns: frozenset[str] = frozenset()
) -> TableLayout:
    """Decide which columns of a file are used.

    Args:
        path: the file.
        schema: its columns.
        config: which columns were asked for.
        own_columns: names in the output that carried columns can't have.

    Raises:
        UsageError: no column or several may hold the image, or a column that was named is missing.
    """
    names = Counter(schema.names)
    doubles = [name for name, count in names.items() if count > 1]
    if doubles:
        raise UsageError(f"{shown(path)} has several columns called {listed(sorted(doubles))}: rename them")
    for option, name in column_options(config):
        if name not in names:
            raise UsageError(f"{shown(path)} has no column {quoted(name)} ({option}): name one of {listed(names)}")
    takes_lists = config.images is not None
    image = config.image_column or _find_image_column(path, schema, takes_lists=takes_lists)
    kind = schema.field(image)
    rank = _rank_in(kind, takes_lists=takes_lists)
    if not rank:
        value, advice = list_value(kind.type), "neither bytes, an Image, nor a path: name another with --image-column"
        advice = advice if value is None else list_advice(value)
        raise UsageError(f"column {quoted(image)} of {shown(path)} is {cut(str(kind.type))}: {advice}")
    kept = [name for name in names if name != image] if ALL_COLUMNS in config.keep_columns else config.keep_columns
    kept = list(dict.fromkeys(kept))
    return TableLayout(
        image=image,
        id=config.id_column,
        kept=pa.schema([(name, schema.field(name).type) for name in kept]),
        kept_as=output_names(path, kept, own_columns),
        rank=rank,
        has_lists=list_value(kind.type) is not None,
        paths=path_base(config.image_root, path.parent, may_fetch=config.allow_remote),
    )


def rank_of(field: pa.Field) -> int:
    """How surely a column holds images: an Image, bytes, a path, or 0 for not at all."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_struct(kind):
        parts = {part.name: part for part in kind}
        if len(parts) < kind.num_fields:  # two of a name: nobody knows which one is meant
            return 0
        fits = ("bytes" in parts and rank_of(parts["bytes"]) == BYTES) or (
            "path" in parts and rank_of(parts["path"]) == PATH
        )
        return IMAGE_STRUCT if fits else 0
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return BYTES
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    # Without any value pandas leaves a column without a type.
    return PATH if is_text or pa.types.is_null(kind) else 0


def _rank_in(field: pa.Field, *, takes_lists: bool) -> int:
    """The rank of a column, or of what is in its lists."""
    value = list_value(field.type) if takes_lists else None
    return rank_of(field if value is None else field.with_type(value))


def _find_image_column(path: Path, schema: pa.Schema, *, takes_lists: bool) -> str:
    for rank in (IMAGE_STRUCT, BYTES, PATH):
        names = [field.name for field in schema if _rank_in(field, takes_lists=takes_lists) == rank]
        if rank == PATH:  # any text may be a path: only the usual names count, the most usual first
            usual = [*PATH_NAMES, *(f"{name}s" for name in PATH_NAMES if takes_lists)]
            names = [name for name in usual if name in names][:1]
        if len(names) == 1:
            return str(names[0])
        if names:
            raise UsageError(
                f"{shown(path)} has several columns that may hold the image ({listed(names)}): "
                "name one with --image-column"
            )
    lists = [f"; {quoted(field.name)}: {list_advice(field.type.value_type)}" for field in schema if _has_lists(field)]
    raise UsageError(
        f"{shown(path)} has no column with images; it has {listed(schema.names)}. Name one with "
        f"--image-column: bytes, a Hugging Face Image, or a path{''.join(lists[:1])}"
    )


def _has_lists(field: pa.Field) -> bool:
    """Whether a column's cells may hold several images."""
    value = list_value(field.type)
    return value is not None and (rank_of(field.with_type(value)) > PATH or field.name.removesuffix("s") in PATH_NAMES)


def list_advice(value: pa.DataType) -> str:
    """What to do with a column whose lists have values of a type."""
    while (inner := list_value(value)) is not None:
        value = inner
    if pa.types.is_integer(value) or pa.types.is_floating(value):
        return "lists of numbers are not read as an image: store the bytes of a JPEG or PNG"
    return "a list of images: caption the first of each list or each one, with --images first or --images each"
