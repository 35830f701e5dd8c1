"""Owns the settings of the inputs."""

from dataclasses import dataclass, field
from enum import StrEnum

from batchcap.core.setting import Form, known_as, require_sense, setting


class ImagesOf(StrEnum):
    """Which images of a list are captioned."""

    FIRST = "first"
    EACH = "each"


def _inputs_fault(inputs: tuple[str, ...]) -> str:
    needed = "give a folder, image files or tables"
    if not inputs:
        return f"must not be empty: {needed}"
    return "" if all(inputs) else f"must not be an empty text: {needed}"


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What is to be captioned; see the help of each setting."""

    inputs: tuple[str, ...] = field(
        metadata=known_as(
            help="Image files, folders of images or Parquet files, tables (Parquet, JSONL, CSV, TSV, Arrow), tar or "
            "zip archives, or quoted glob patterns.",
            argument="INPUT",
            form=Form.REPEATED,
            check=_inputs_fault,
        )
    )
    image_column: str | None = setting(
        None,
        "Column with the image: bytes, Hugging Face Image, or path; in archives the extension of the member. Default: "
        "detected.",
        decides_caption=True,
    )
    id_column: str | None = setting(
        None, "Column to use as id. Default: file name and row number.", decides_caption=True
    )
    image_root: str | None = setting(
        None,
        "Base folder for relative paths in a path column; paths outside of it are rejected. Default: the table's "
        "folder, with no limit.",
        decides_caption=True,
    )
    keep_columns: tuple[str, ...] = setting(
        (),
        "Input columns to carry into the output, separated by commas; * for all but the image.",
        file_help='Input columns to carry into the output; ["*"]: all but the image.',
        form=Form.COMMAS,
        decides_caption=True,
    )
    images: ImagesOf | None = setting(
        None,
        "Which images of a column with lists of images: the first of each list, or each, as a row of its own (ids end "
        "in #0, #1 and so on).",
        decides_caption=True,
        value_before=None,
    )

    def __post_init__(self) -> None:
        require_sense(self)
