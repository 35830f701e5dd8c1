"""Owns the answer to: nearly all rows failed alike, why, and what would help."""

from contextlib import suppress
from pathlib import Path

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind, StorageError
from batchcap.core.records import CaptionRow
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import one_line
from batchcap.store.folder import JobFolder
from batchcap.store.parts import first_failure

# From this share of all rows on, one cause stands behind them more likely than many.
ALIKE_SHARE = 0.9
_MAX_LETTERS = 300

_AGAIN = "then run the same command with --retry failed"
_ADVICE = {
    ErrorKind.MISSING: f"mount or copy the missing files, {_AGAIN}",
    ErrorKind.UNREADABLE: f"check the permissions and the disk, {_AGAIN}",
    ErrorKind.REFUSED: "give --allow-remote to fetch addresses, or another --image-root for paths that lead out of it",
    ErrorKind.NOT_AN_IMAGE: "check that the inputs are images; --image-column chooses another column of a table",
    ErrorKind.CORRUPT: f"the files may have been copied only in part: copy them again, {_AGAIN}",
    ErrorKind.TOO_LARGE: "raise --max-image-pixels if you trust the files, and add --retry failed",
    ErrorKind.BAD_SHAPE: "the model does not accept this aspect ratio: crop the images",
    ErrorKind.NETWORK: f"check the network and whether the server can be reached, {_AGAIN}",
    ErrorKind.CRASHED: "memory may be short: try --profile small, or a longer --image-timeout, with --retry failed",
    ErrorKind.INTERNAL: "a bug in batchcap: run one image with --verbose and another --output to see more",
}
_NULL_CELLS = "the image column is null in these rows: choose another with --image-column"
_LFS = f"these are Git LFS pointers: run `git lfs pull` in their repository, {_AGAIN}"


def why_alike(folder: JobFolder, counts: RowCounts, given: InputConfig) -> str | None:
    """One line on why nearly all rows of a finished job failed and which option helps; None where they did not.

    Args:
        folder: the job's; all its parts are written.
        counts: of all rows.
        given: what the job was given to read.
    """
    for kind, count in counts.error_kinds.most_common(1):
        if count >= ALIKE_SHARE * counts.rows:
            sample = sample_of(folder, kind)
            if sample is None:
                return f"{count} of {counts.rows} rows failed as {kind}"
            said = one_line(sample.error_message or "")
            said = said if len(said) <= _MAX_LETTERS else f"{said[:_MAX_LETTERS]}…"
            advice = _advice(ErrorKind(kind), sample, given)
            return f"{count} of {counts.rows} rows failed as {kind}, such as {one_line(sample.id)} ({said}): {advice}"
    return None


def sample_of(folder: JobFolder, kind: str) -> CaptionRow | None:
    """The first row in the parts that failed as this kind; None where none is found."""
    with suppress(StorageError):  # the run has ended; a part that can't be read now must not change its end
        for path in folder.part_paths():
            if (row := first_failure(path, kind)) is not None:
                return row
    return None


def _advice(kind: ErrorKind, sample: CaptionRow, given: InputConfig) -> str:
    said = sample.error_message or ""
    if kind is ErrorKind.NOT_AN_IMAGE and "LFS" in said:
        return _LFS
    if kind is ErrorKind.REFUSED and given.allow_remote:
        return f"do as it says, {_AGAIN}"
    if kind is ErrorKind.MISSING and "null" in said:
        return _NULL_CELLS
    if kind is ErrorKind.MISSING and not said.startswith(sample.source):  # a path of a table's column
        root = Path(given.image_root).expanduser().absolute() if given.image_root else Path(sample.source).parent
        base = str(root)
        if said.startswith(base):
            return f"relative paths start from {one_line(base)}: give --image-root with their real base folder"
    return _ADVICE[kind]
