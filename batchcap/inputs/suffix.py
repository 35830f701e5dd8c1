"""Owns what a file's suffix says where no reader has it: an image or something else that batchcap does not read."""

import os


def suffix_set(extensions: str) -> frozenset[str]:
    """Extensions between blanks as suffixes."""
    return frozenset(f".{extension}" for extension in extensions.split())


# Camera raw files. Not `.raw`: few are of cameras, most are samples without any header.
RAW_SUFFIXES = suffix_set(
    """
    3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f
    """
)
# Images that nothing here decodes. Found in a folder they are no rows, since nobody named them.
UNREADABLE_IMAGE_SUFFIXES = (
    suffix_set(
        """
    heic heics heif heifs hif avci jxl jxr wdp hdp
    ai djvu emf eps exr hdr pdf psb raw svg svgz wmf xcf
    """
    )
    | RAW_SUFFIXES
)
# What holds images and yet is none: each of them would be one failed row, and nobody would know why.
_ARCHIVE = (
    "is an archive, which batchcap does not open: unpack it and give the folder, or make it a .tar, .tar.gz or .zip"
)
_JSON = (
    "is JSON, of which batchcap reads JSONL, an object in each line: convert it, with DuckDB or with "
    "`jq -c '.[]' a.json > a.jsonl` for example"
)
_TABLE = "is a table that batchcap does not read: convert it to Parquet, with pandas or DuckDB for example"
NOT_READ = {
    **dict.fromkeys((".tbz2", ".txz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"), _ARCHIVE),
    **dict.fromkeys((".avro", ".orc"), _TABLE),
    ".json": _JSON,
    ".toml": "is a job file: give it to `batchcap run`",
}


# The last extension says only how a file is packed.
_COMPOUND = (".tar.gz",)


def suffix_of(path: str) -> str:
    """The suffix of a path in lower case; empty where it has none."""
    lower = path.lower()
    return next((one for one in _COMPOUND if lower.endswith(one)), os.path.splitext(lower)[1])
