"""Owns what is remembered of large inputs between runs: where their rows begin, so that nobody reads them twice.

An index follows from its file alone. It lies in the cache folder, is made again where it is missing, and one that was
not used for months is deleted. Where the cache folder can't be written, each run makes its own.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from batchcap.core.atomic import atomic_file
from batchcap.core.cache import cache_folder
from batchcap.core.errors import StorageError, UsageError
from batchcap.inputs.storage import absolute, status_of

log = logging.getLogger(__name__)

_MAX_AGE_S = 90 * 24 * 3600.0
_SUFFIX = ".arrow"


def index_of(file: Path, name: str, build: Callable[[], pa.Table]) -> pa.Table:
    """The index of a file as it is now.

    Args:
        file: the input.
        name: what the index is for, with a version: another name is another index.
        build: makes it; its errors are the caller's.

    Raises:
        OSError: the file can't be looked at.
    """
    status = status_of(file)
    key = f"{name}\0{absolute(str(file))}\0{status.size_bytes}\0{status.changed_ns}"
    place = _place_of(hashlib.sha256(os.fsencode(key)).hexdigest())
    if place is not None and (kept := _read(place)) is not None:
        return kept
    index = build()
    if place is not None:
        _keep(place, index)
    return index


def _place_of(digest: str) -> Path | None:
    try:
        return cache_folder() / "indexes" / f"{digest}{_SUFFIX}"
    except UsageError:  # no home folder
        return None


def _read(place: Path) -> pa.Table | None:
    """An index that was kept; None where there is none, or none that is whole."""
    try:
        with pa.memory_map(str(place)) as file, pa.ipc.open_file(file) as reader:
            index = reader.read_all()
        os.utime(place)
    except (OSError, pa.ArrowException):
        return None
    return index


def _keep(place: Path, index: pa.Table) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_old(place.parent)
        with (
            atomic_file(place) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, index.schema) as writer,
        ):
            writer.write_table(index)
    except (OSError, StorageError) as error:
        log.debug("an index is not kept: %s", error)


@lru_cache(8)  # once a run: an input may be thousands of files
def _remove_old(folder: Path) -> None:
    oldest_s = time.time() - _MAX_AGE_S
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            if path.stat().st_mtime < oldest_s:
                path.unlink()
