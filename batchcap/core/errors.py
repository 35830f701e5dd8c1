"""Owns the errors a person can act on: what they are called and which exit code each one ends with."""

import re
from enum import IntEnum, StrEnum

# ONNX Runtime, PyTorch, oneDNN and the C library have no class of their own for it.
_NO_MEMORY = re.compile(
    r"bad.?alloc|(failed|can't|cannot|unable) to allocate|(can't|cannot|could not) allocate|(out of|not enough) memory",
    re.IGNORECASE,
)


class ExitCode(IntEnum):
    """Exit codes of every command; documented in docs/operations.md and fixed."""

    COMPLETE = 0
    UNEXPECTED = 1
    USAGE = 2
    TOO_MANY_FAILURES = 3  # of rows, or nothing was captioned; or checks of `verify`
    LOCKED = 4
    NOT_SAME_JOB = 5
    STOPPED_EARLY = 75
    INTERRUPTED = 130


class BatchcapError(Exception):
    """An error whose message tells the person what to do; shown as one line, never as a traceback."""

    exit_code: ExitCode = ExitCode.UNEXPECTED


class UsageError(BatchcapError):
    """The command line, a job file or an input does not make sense."""

    exit_code = ExitCode.USAGE


class BundleError(UsageError):
    """A model bundle is missing, broken, or not what `bundle.json` says."""


class NoBundleError(BundleError):
    """There is no bundle where one is named."""


class OutOfMemoryError(BatchcapError):
    """There is not enough memory for something that must be in memory as a whole."""


class CheckpointError(UsageError):
    """A checkpoint can't be exported: missing, broken, or not a dense Qwen3-VL."""


class StorageError(BatchcapError):
    """The job folder can't be written or read (full disk, read-only, input/output error)."""


class StreamError(BatchcapError):
    """Results can't be written to stdout."""


class LockedError(BatchcapError):
    """Another run holds the job folder's lock."""

    exit_code = ExitCode.LOCKED


class NotSameJobError(BatchcapError):
    """The job folder belongs to a job with other inputs, model, prompt or settings."""

    exit_code = ExitCode.NOT_SAME_JOB


class ChangedInputError(BatchcapError):
    """An input of this job is not what it was when it was captioned."""

    exit_code = ExitCode.NOT_SAME_JOB


class WorkerError(BatchcapError):
    """A worker process ended or reported an error that is not about one image."""


class ErrorKind(StrEnum):
    """Why one row has no caption; the `error_kind` column."""

    MISSING = "missing"  # no file at that path, or a null cell
    UNREADABLE = "unreadable"  # the file exists but can't be opened or read
    REFUSED = "refused"  # a manifest's path that is not opened: an address of the web, or outside --image-root
    NOT_AN_IMAGE = "not_an_image"  # no known image format, whatever the name says
    CORRUPT = "corrupt"  # a known format that does not decode (truncated, damaged)
    TOO_LARGE = "too_large"  # more pixels, parts or bytes than the limits (decompression bomb)
    BAD_SHAPE = "bad_shape"  # an aspect ratio the model can't take
    NETWORK = "network"  # an address that gave no answer, or errors only, in several attempts
    CRASHED = "crashed"  # the process that worked on it ended, or did not come to an end with it, twice
    INTERNAL = "internal"  # an error of ours while this row was worked on


class RowError(Exception):
    """One row can't be captioned; it becomes a `failed` row and the job goes on."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory is lacking."""
    return isinstance(error, MemoryError | OutOfMemoryError) or _NO_MEMORY.search(str(error)) is not None


def load_error(what: str, error: Exception) -> BatchcapError:
    """The error for a file of a bundle that can't be loaded, by its cause.

    Args:
        what: the beginning of the message: which file can't be loaded.
        error: what the library that loads it has raised.
    """
    if lacks_memory(error):
        return OutOfMemoryError(
            f"{what} ({error}): there is not enough memory, end other programs or use a smaller model"
        )
    if "procfs" in str(error):  # ONNX Runtime looks there for the real path of a weights file
        return UsageError(f"{what} ({error}): mount /proc in this container, sandbox or chroot")
    return BundleError(f"{what} ({error}): export the bundle again")
