"""Owns `job.json`: what a job was begun with, as its folder keeps it."""

import json
from dataclasses import dataclass
from typing import Any

from batchcap.errors import UsageError
from batchcap.store.atomic import write_atomic
from batchcap.store.folder import JobFolder


@dataclass(frozen=True, slots=True)
class JobFile:
    """Content of the file; anything below the three keys may be of another batchcap, or missing.

    Attributes:
        format_version: of the job folder.
        fingerprint: what decides the captions.
        configuration: the job as it was asked for, in plain JSON types.
    """

    format_version: object
    fingerprint: dict[str, Any]
    configuration: dict[str, Any]


def read_job_file(folder: JobFolder) -> JobFile | None:
    """What the job was begun with; None where the folder has no such file.

    Raises:
        UsageError: the file can't be read.
    """
    path = folder.job_path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        configuration = dict(content.get("configuration", {}))
        return JobFile(content["format_version"], dict(content["fingerprint"]), configuration)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} can't be read ({error}): put it back, or choose another --output") from None


def write_job_file(folder: JobFolder, fingerprint: dict[str, Any], configuration: dict[str, Any]) -> None:
    """Store what a job is begun with.

    Raises:
        StorageError: the file can't be written.
    """
    content = {"format_version": folder.format_version, "fingerprint": fingerprint, "configuration": configuration}
    # A path that is not text becomes a JSON escape, and reads back as it was.
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomic(folder.job_path, text.encode(errors="backslashreplace"))
