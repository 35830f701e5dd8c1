"""Owns the settings of the inputs."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from batchcap.core.setting import MAX_NUMBER, Form, known_as, require_sense, setting

_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", re.ASCII)


class ImagesOf(StrEnum):
    """Which images of a list are captioned."""

    FIRST = "first"
    EACH = "each"


def _inputs_fault(inputs: tuple[str, ...]) -> str:
    needed = "give a folder, image files or tables"
    if not inputs:
        return f"must not be empty: {needed}"
    return "" if all(inputs) else f"must not be an empty text: {needed}"


def _where_fault(where: str | None) -> str:
    return "" if where is None or where.strip() else 'must not be empty: give a condition, such as "width > 256"'


def _shard_fault(shard: str | None) -> str:
    if shard is None:
        return ""
    found = _SHARD.fullmatch(shard)
    if found is None or int(found[1]) > int(found[2]):
        return f"must be I/N, the I-th of N stretches, from 1/N to N/N, not {shard[:40]!r}"
    return ""


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What is to be captioned; see the help of each setting."""

    inputs: tuple[str, ...] = field(
        metadata=known_as(
            help="Image files, folders of images or Parquet files, tables (Parquet, JSONL, CSV, TSV, Arrow), tar or "
            "zip archives, or quoted glob patterns; with --allow-remote addresses, too.",
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
    where: str | None = setting(
        None,
        "Only rows whose columns match this condition in SQL, such as \"width > 256 AND lang = 'en'\". Needs the extra "
        "`where`.",
        metavar="SQL",
        check=_where_fault,
        decides_caption=True,
        value_before=None,
    )
    sample: int = setting(
        0,
        "Only so many rows, drawn at random from those found when the job begins; 0: all.",
        at_least=0,
        zero="all",
        at_most=MAX_NUMBER,
        decides_caption=True,
        value_before=0,
    )
    sample_seed: int = setting(
        0,
        "Another number draws another --sample.",
        file_help="Another number draws another sample.",
        at_least=0,
        at_most=MAX_NUMBER,
        decides_caption=True,
        value_before=0,
    )
    allow_remote: bool = setting(
        False,
        "Fetch what inputs, manifests and output forms name by address (s3://, gs://, hf://, https://). Without it "
        "nothing is ever fetched or sent.",
    )
    shard: str | None = setting(
        None,
        "Only the I-th of N stretches of the rows, for N jobs on N machines; `batchcap merge` joins their folders.",
        metavar="I/N",
        check=_shard_fault,
        decides_caption=True,
        value_before=None,
    )

    @property
    def shard_of(self) -> tuple[int, int]:
        """Which stretch of the rows, from 1, and of how many."""
        number, _slash, count = (self.shard or "1/1").partition("/")
        return int(number), int(count)

    @property
    def is_choice(self) -> bool:
        """Whether some rows of the inputs may not be rows of the job."""
        return self.where is not None or self.is_fixed

    @property
    def is_fixed(self) -> bool:
        """Whether the rows are those found when the job began."""
        return self.sample > 0 or self.shard is not None

    def __post_init__(self) -> None:
        require_sense(self)
