"""Owns `job.json`: what a job was begun with, as its folder keeps it."""

import json
from dataclasses import dataclass
from typing import Any

from batchcap.config import ImagesOf, InputConfig
from batchcap.core.atomic import write_atomic
from batchcap.core.errors import UsageError
from batchcap.store.folder import FORMAT_VERSION, JobFolder

KNOWN_FORMATS = (2, FORMAT_VERSION)


class UnknownFormatError(UsageError):
    """A job folder of another batchcap, a later one as a rule."""


@dataclass(frozen=True, slots=True)
class JobFile:
    """Content of the file; anything below the two keys may be of another batchcap, or missing.

    Attributes:
        fingerprint: what decides the captions.
        configuration: the job as it was asked for, in plain JSON types.
    """

    fingerprint: dict[str, Any]
    configuration: dict[str, Any]


def read_job_file(folder: JobFolder) -> JobFile | None:
    """What the job was begun with; None where the folder has no such file.

    Raises:
        UnknownFormatError: the folder is of a format that is not known.
        UsageError: the file can't be read.
    """
    try:
        content = json.loads(folder.job_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, str(error)) from None
    if not isinstance(content, dict) or "format_version" not in content:
        raise _unreadable(folder, "it has no format_version")
    version = content["format_version"]
    if version not in KNOWN_FORMATS:
        known = " and ".join(map(str, KNOWN_FORMATS))
        raise UnknownFormatError(
            f"{folder.path} has format {version}, this batchcap knows {known}: use the batchcap that made it, or "
            "another --output"
        )
    fingerprint, configuration = content.get("fingerprint"), content.get("configuration", {})
    if not isinstance(fingerprint, dict) or not isinstance(configuration, dict):
        raise _unreadable(folder, "it has no fingerprint or configuration")
    return JobFile(fingerprint, configuration)


def begun_configuration(folder: JobFolder) -> dict[str, Any]:
    """The configuration that a job was begun with.

    Raises:
        UsageError: the folder does not say, or is of a format that is not known.
    """
    file = read_job_file(folder)
    if file is None or not file.configuration:
        raise UsageError(
            f"{folder.job_path} is missing or incomplete: restore it, or caption again with another --output"
        )
    return file.configuration


def input_config(configuration: dict[str, Any]) -> InputConfig:
    """How the inputs of a begun job are read, without passthrough columns: its parts have them."""
    given = configuration["input"]
    settings: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in given.items()}
    if settings.get("images") is not None:
        settings["images"] = ImagesOf(settings["images"])
    return InputConfig(**{**settings, "keep_columns": ()})


def _unreadable(folder: JobFolder, reason: str) -> UsageError:
    return UsageError(f"{folder.job_path} can't be read ({reason}): put it back, or choose another --output")


def require_known_format(folder: JobFolder) -> None:
    """Refuse a job folder of a format that is not known; one whose `job.json` is missing or damaged may be looked at.

    Raises:
        UnknownFormatError: it is of another format.
    """
    try:
        read_job_file(folder)
    except UnknownFormatError:
        raise
    except UsageError:
        pass


def write_job_file(folder: JobFolder, fingerprint: dict[str, Any], configuration: dict[str, Any]) -> None:
    """Store what a job is begun with.

    Raises:
        StorageError: the file can't be written.
    """
    content = {"format_version": folder.format_version, "fingerprint": fingerprint, "configuration": configuration}
    # A path that is not text becomes a JSON escape, and reads back as it was.
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomic(folder.job_path, text.encode(errors="backslashreplace"))
