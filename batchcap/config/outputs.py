"""Owns the settings of the other forms of the captions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from batchcap.config.run import Retry
from batchcap.core.address import canonical, is_remote, is_web, path_of
from batchcap.core.setting import Form, did_you_mean, require_sense, setting
from batchcap.core.text import is_address

# Every form by its name, and what it is.
FORMS = {
    "txt": "a text file for each caption: a.txt beside a.jpg; of several prompts a.NAME.txt",
    "json": "a JSON file for each image, with its captions: a.json beside a.jpg",
    "xmp": "an XMP file for each image, with description and alt text: a.xmp or a.jpg.xmp, whichever is there already",
    "jsonl": "one file with a JSON object for each row: OUT.jsonl",
    "csv": "one file of comma-separated values with a header: OUT.csv; see --csv-safe",
    "arrow": "one Arrow (Feather) file: OUT.arrow",
    "imagefolder": "a Hugging Face imagefolder, images and metadata.jsonl: OUT-imagefolder; see --folder-images",
    "hf-parquet": "a Hugging Face dataset in Parquet with the images inside: OUT-hf-parquet",
    "webdataset": "tar files for WebDataset, image, captions and JSON of each row: OUT-webdataset",
    "dataset": "the tables of the input as Parquet with captions as columns, of a complete job: OUT-dataset",
    "html-alt": "HTML pages of --html-pages with alt texts, in the folder WHERE",
}
# Those whose place has no default.
_NEED_WHERE = ("html-alt",)
_IN_FILE = " (in a job file: allow_remote = true below [input])"
_ONE_FILE = ("jsonl", "csv", "arrow")


class Existing(StrEnum):
    """What becomes of a caption whose file is there already, with text of somebody else."""

    SKIP = "skip"
    FAIL = "fail"
    REPLACE = "replace"
    APPEND = "append"
    PREPEND = "prepend"


class FolderImages(StrEnum):
    """How the images come into an imagefolder."""

    LINK = "link"
    COPY = "copy"
    INPLACE = "inplace"


def form_fault(wanted: str) -> str:
    """What is wrong with `FORM` or `FORM:WHERE`, in words that follow the option's name; "" where nothing is."""
    name, colon, where = wanted.partition(":")
    if name not in FORMS:
        return f"must be one of {', '.join(FORMS)}, not {name!r}{did_you_mean(name, list(FORMS))}"
    if where:
        return _place_fault(name, where)
    if not (colon or name in _NEED_WHERE):
        return ""
    if name in _NEED_WHERE:
        return f"names no folder for the pages: write {name}:FOLDER"
    return f"names no place after its colon: write {name}, or {name}:WHERE"


def _place_fault(name: str, where: str) -> str:
    """What is wrong with a place; nothing of a path is known to be."""
    if not is_address(where):
        return ""
    known = "s3://, gs:// or hf://"
    if not is_remote(where):
        return f"names {where}, which is no address that can be written to: write a folder, or one of {known}"
    if is_web(where):
        return f"names {where}, and web servers take no files: write a folder, or an address of {known}"
    if path_of(canonical(where)) is None:
        return f"names {where}, and there can't be `//`, `.` or `..` in an address: write it without"
    _protocol, _mark, below = canonical(where).partition("://")
    if name in _ONE_FILE and (where.endswith("/") or "/" not in below):
        return f"names {where}, and {name} is one file: write the whole name, {where.rstrip('/')}/captions.{name}"
    return ""


def sent_without_asking(forms: Iterable[str]) -> str:
    """What is wrong with forms where nobody allows addresses, in words that follow the option's name."""
    places = (form.partition(":")[2] for form in forms)
    address = next(filter(is_remote, places), None)
    return (
        "" if address is None else f"names the address {address}, and nothing is sent without --allow-remote{_IN_FILE}"
    )


def _also_fault(also: tuple[str, ...]) -> str:
    return next(filter(None, map(form_fault, also)), "")


def _verdicts_fault(verdicts: tuple[str, ...]) -> str:
    known = ["ok", *(str(one) for one in Retry if one is not Retry.FAILED)]
    unknown = [name for name in verdicts if name not in known]
    if unknown:
        return f"must be some of {', '.join(known)}, not {unknown[0]!r}{did_you_mean(unknown[0], known)}"
    return "" if verdicts else f"must not be empty: name some of {', '.join(known)}"


def _license_fault(name: str) -> str:
    is_id = re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) is not None
    return "" if is_id else f"must be an identifier of the Hugging Face hub, such as cc-by-4.0, not {name!r}"


@dataclass(frozen=True, slots=True)
class OutputsConfig:
    """In which other forms the captions are written; never changes a caption."""

    also: tuple[str, ...] = setting(
        (),
        "Write the captions in this form too, while the job runs: FORM or FORM:WHERE, for example txt for a text file "
        "beside each image; may be given several times. With --allow-remote WHERE may be an address. `batchcap convert "
        "--help` lists the forms.",
        file_help='Write the captions in these forms too, while the job runs: "FORM" or "FORM:WHERE"; WHERE may be an '
        "address with allow_remote.",
        metavar="FORM[:WHERE]",
        form=Form.REPEATED,
        check=_also_fault,
    )
    existing: Existing = setting(
        Existing.SKIP,
        "If a file for a caption is there already and batchcap did not write it: skip it, fail before any work, "
        "replace it, or append or prepend the caption to its text.",
    )
    verdicts: tuple[str, ...] = setting(
        ("ok",),
        "Write captions of these verdicts, separated by commas: ok, truncated, repeated, degenerate, empty.",
        file_help="Write captions of these verdicts: ok, truncated, repeated, degenerate, empty.",
        form=Form.COMMAS,
        check=_verdicts_fault,
    )
    full_names: bool = setting(False, "Name a file after its image with the extension: a.jpg.txt, not a.txt.")
    max_alt_letters: int = setting(
        250,
        "With the forms xmp and html-alt: letters of an alt text at most. A longer one is cut at the end of a word.",
        at_least=20,
        at_most=10_000,
    )
    html_pages: str | None = setting(
        None,
        "With the form html-alt: folder of the site, whose .html and .htm files are read. They are never changed.",
        metavar="FOLDER",
    )
    folder_images: FolderImages = setting(
        FolderImages.LINK,
        "Images of an imagefolder. link: hard links where the disk allows, else copies; copy: copies; inplace: they "
        "stay where they are, and metadata.jsonl is written into the input folder.",
    )
    license: str = setting(
        "unknown",
        "License of the captioned images, for the dataset card, as the Hugging Face hub calls it: cc-by-4.0, mit, …",
        metavar="ID",
        check=_license_fault,
    )
    csv_safe: bool = setting(False, "In CSV, put ' before text that a spreadsheet would take for a formula.")

    def __post_init__(self) -> None:
        require_sense(self)
