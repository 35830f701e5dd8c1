"""Owns the finding of sources: folders, files and glob patterns become files in a stable order."""

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from batchcap.config import InputConfig
from batchcap.core.address import PROTOCOLS, address_of, is_remote, is_web, without_query
from batchcap.core.errors import UsageError
from batchcap.core.jobfolder import is_job_folder
from batchcap.core.sources import Source
from batchcap.core.text import is_address, printable_name, shown_name
from batchcap.inputs.braces import expanded, has_range
from batchcap.inputs.content import PREFIX_BYTES, not_an_image, plugin_for
from batchcap.inputs.encoded import read_beginning
from batchcap.inputs.imagefolder import PARQUET_NAME, describes_images
from batchcap.inputs.reader import Reader
from batchcap.inputs.registry import DEFAULT_READER, READERS, open_readers, readers_by_suffix
from batchcap.inputs.remote_walk import RemoteWalk
from batchcap.inputs.skipped import Skipped
from batchcap.inputs.storage import (
    FileStatus,
    absolute,
    as_path,
    has_magic,
    is_folder,
    look_again,
    name_in,
    names_in,
    status_of,
)
from batchcap.inputs.suffix import NOT_READ, RAW_SUFFIXES, UNREADABLE_IMAGE_SUFFIXES, suffix_of
from batchcap.inputs.walk import Walk, asks_for_parts, fixed_part, folder_above

log = logging.getLogger(__name__)

# Folders in which a writer keeps what is not finished, and a table its log: nothing in them is input.
_WRITERS_FOLDERS = frozenset({"_temporary", "_delta_log"})


def discover(config: InputConfig, exclude: Path, skipped: Skipped | None = None) -> Iterator[Source]:
    """Find the sources of a job, one after the other: a million of them are never held together.

    In the order of the inputs; inside a folder (searched with all folders below it) by relative path. A file that two
    inputs lead to comes twice; the plan counts it once. A pattern without `**` that matches folders takes all that is
    in them. Skipped are hidden files and folders, `exclude`, and what is counted in `Skipped`, which is logged. A file
    that is named itself is taken whatever its extension is, also by a pattern that ends with one (`*.dat`), and so are
    the parts of job folders by a pattern that ends in `part-*.parquet`. Kinds that are not `found_in_folders`, and
    camera raw files beside an image of the same name, are taken in these ways only. A table that a table format keeps
    (Delta Lake, Hudi, Iceberg) is refused where a folder is searched, unless the job was begun: it may have such rows.

    Args:
        config: the inputs.
        exclude: the job's own output.
        skipped: gets the counts of all inputs, each once its last source has been given.

    Yields:
        Sources; an id is the path inside the input folder. A `metadata.parquet` among images is marked: it has no rows
        in a new job.

    Raises:
        UsageError: an input does not exist, is an address, a job folder or a file of something else (told before the
            first source), has no image, or is an archive or another table; a folder that is searched has a table of a
            table format; a table can't be read, or all of them are empty.
    """
    is_begun = is_job_folder(exclude)  # asked before the first source: then the folder is made
    look_again()
    _require_inputs(config)
    rows = 0
    nouns = dict[str, None]()  # of the sources, in their order
    readers, warnings = open_readers(config), _Warnings()
    for name in config.inputs:
        search = _Search(os.path.realpath(exclude), readers, takes_tables=is_begun)
        found = False
        for source in _told(name, search.given(name)):
            found = True
            rows += source.rows
            nouns[READERS[source.kind].noun] = None
            warnings.tell(source)
            yield source
        if not found:
            raise UsageError(search.skipped.nothing_found(name))
        for level, line in search.skipped.lines():
            log.log(level, "%s: %s", shown_name(name), line)
        if skipped is not None:
            skipped.add(search.skipped)
    if not rows:
        what = " and ".join(f"no {noun}" for noun in nouns)
        raise UsageError(f"{what} in {', '.join(map(shown_name, config.inputs))} has a row: name files that have some")


def _told(given: str, sources: Iterator[Source]) -> Iterator[Source]:
    """The sources; what goes wrong with an address says which input it is."""
    try:
        yield from sources
    except OSError as error:
        if not is_remote(given):
            raise
        raise UsageError(f"the input {shown_name(without_query(given))}: {error.strerror or error}") from None


def _require_inputs(config: InputConfig) -> None:
    for given in config.inputs:
        if is_address(given):
            _require_address(given, may_fetch=config.allow_remote)
        for name in _names_of(given):
            _require_input(name)


def _names_of(given: str) -> Iterator[str]:
    """The inputs that one stands for: itself, unless it has a range of numbers and nothing is there with that name."""
    path = as_path(given)
    is_here = address_of(path) is None
    stands_for_several = has_range(given) and not (is_here and (os.path.lexists(path) or _matches_any(path)))
    yield from expanded(given) if stands_for_several else (given,)


def _matches_any(pattern: str) -> bool:
    return glob.has_magic(pattern) and next(glob.iglob(pattern, recursive=True), None) is not None


def _require_address(name: str, *, may_fetch: bool) -> None:
    if name.lower().startswith("file:"):
        raise UsageError(f"{shown_name(name)} is an address: give the path of the file or folder itself")
    if not is_remote(name):
        known = ", ".join(f"{protocol}://" for protocol in PROTOCOLS)
        raise UsageError(f"{shown_name(name)} is an address that batchcap can't fetch ({known} it can): download it")
    if is_web(name) and "*" in without_query(name):
        raise UsageError(
            f"{shown_name(without_query(name))}: web servers have no lists of their files: name each file, or a range "
            "of numbers such as {000..127}"
        )
    if not may_fetch:
        raise UsageError(
            f"{shown_name(name)} is an address, and batchcap fetches nothing unless it is told to: give "
            "--allow-remote, or download it and give the file"
        )


def _require_input(name: str) -> None:
    path = as_path(name)
    if address_of(path) is not None:
        return  # asked for when its sources are found
    if os.path.lexists(path):
        folder = path
    elif glob.has_magic(path):
        folder = "" if asks_for_parts(path) else fixed_part(path)
    else:
        raise UsageError(f"the input {shown_name(name)} does not exist: check how it is written")
    if folder and is_job_folder(Path(folder)):
        raise UsageError(
            f"{shown_name(name)} is a job folder of batchcap, which holds captions and no images: leave it out. If "
            "its part files carry a column of images, name these, in quotes: '…/part-*.parquet'"
        )
    # A suffix that is known says what the file is meant to be; what it is its row says.
    known = readers_by_suffix().keys() | UNREADABLE_IMAGE_SUFFIXES | NOT_READ.keys()
    if suffix_of(path) not in known and (beginning := read_beginning(path, PREFIX_BYTES)) is not None:
        plugin = plugin_for(beginning)
        what = not_an_image(beginning) if plugin is None or not plugin.is_installed else None
        if what is not None:
            raise UsageError(f"the input {shown_name(name)} is {what}")


@dataclass(slots=True)
class _Warnings:
    """What a person was told of sources, each once, and the folders looked at."""

    told: set[str] = field(default_factory=set)
    seen: set[tuple[str, Path]] = field(default_factory=set)

    def tell(self, source: Source) -> None:
        """Say what is to be said of the folder of a source."""
        reader = READERS[source.kind]
        folder = (source.kind, source.path.parent) if reader.is_container else None  # of images there may be a million
        if folder is None or folder in self.seen:
            return
        self.seen.add(folder)
        warning = reader.warning(folder[1])
        if warning is not None and warning not in self.told:
            self.told.add(warning)
            log.warning("%s", warning)


class _Search:
    """The search for the sources of one input."""

    def __init__(self, exclude: str, opened: Mapping[str, Reader], *, takes_tables: bool) -> None:
        self.skipped = Skipped()
        self._opened = opened
        self._takes_tables = takes_tables
        self._searched: set[tuple[str, str]] = set()  # kinds of sources, and the folders they were found in
        self._walk: Walk | RemoteWalk = Walk(exclude, self.skipped.job_folders, self.skipped.datasets)
        self._readers = readers_by_suffix()
        self._stems: tuple[str, frozenset[str]] = "", frozenset()

    def given(self, given: str) -> Iterator[Source]:
        """The sources of an input; of one with a range of numbers the ids are relative to the folder above it."""
        if is_remote(given):
            self._walk = RemoteWalk()
        for name in _names_of(given):
            path = as_path(name)
            base = None if name == given else folder_above(given)
            if has_magic(path) and address_of(path) is not None:
                yield from self._pattern(path, fixed_part(path) if base is None else base)
            elif is_folder(path):
                yield from self._folder(path, base)
            elif address_of(path) is not None or os.path.lexists(path):
                relative = name_in(path) if base is None else os.path.relpath(path, base)
                yield self._source(absolute(path), relative, suffix_of(name_in(path)))
            else:
                yield from self._pattern(path, fixed_part(path) if base is None else base)

    def _pattern(self, pattern: str, base: str) -> Iterator[Source]:
        suffix = os.path.splitext(pattern)[1]
        names_suffix = bool(suffix) and not glob.has_magic(suffix)
        asked_for = [part for part in pattern.split(os.sep) if part.startswith("_")]
        for path in self._walk.matches(pattern, base):
            if address_of(path) is None and os.path.isdir(path):
                # With `**` the files below are matches themselves.
                if "**" not in pattern:
                    yield from self._folder(path, base, asked_for)
                continue
            relative, suffix = os.path.relpath(path, base), suffix_of(path)
            if self._is_wanted(path, relative, suffix, asked_for, names_suffix=names_suffix):
                full = absolute(path)
                if names_suffix or not self._is_metadata(full):
                    yield self._source(full, relative, suffix)
                else:
                    yield from self._metadata(full, relative, suffix)

    def _folder(self, folder: str, base: str | None = None, asked_for: Sequence[str] = ()) -> Iterator[Source]:
        """The sources below a folder; their ids are relative to `base`, or to the folder."""
        above = "" if base is None else os.path.relpath(folder, base)
        full = absolute(folder)
        for name in self._walk.below(full):
            relative, suffix = os.path.join(above, name), suffix_of(name)
            path = os.path.join(full, name)
            if self._is_wanted(path, relative, suffix, asked_for):
                if self._is_metadata(path):
                    yield from self._metadata(path, relative, suffix)
                    continue
                self._require_no_table(os.path.dirname(path), self._readers[suffix])
                yield self._source(path, relative, suffix)

    def _is_metadata(self, path: str) -> bool:
        """Whether a file describes the images in its folder and below."""
        if os.path.basename(path) != PARQUET_NAME:
            return False
        below = self._walk.below(os.path.dirname(path))
        return any(suffix_of(name) in DEFAULT_READER.suffixes for name in below) and describes_images(Path(path))

    def _metadata(self, path: str, relative: str, suffix: str) -> Iterator[Source]:
        """What describes images, for jobs that have its rows: earlier versions took it for a table."""
        self.skipped.others[suffix] += 1
        with suppress(UsageError):
            yield replace(self._source(path, relative, suffix), is_metadata=True)

    def _require_no_table(self, folder: str, reader: type[Reader]) -> None:
        """Refuse a folder in which a search has found sources of a kind, if they are files of a format's table."""
        if self._takes_tables or not reader.is_container or (reader.kind, folder) in self._searched:
            return
        self._searched.add((reader.kind, folder))
        if (reason := reader.refusal(Path(folder))) is not None:
            raise UsageError(reason)

    def _is_wanted(
        self, path: str, relative: str, suffix: str, asked_for: Sequence[str] = (), *, names_suffix: bool = False
    ) -> bool:
        """Whether a file is a source; else it is counted.

        Args:
            path: its path.
            relative: its path inside the input.
            suffix: of the path.
            asked_for: names that begin with `_` in the pattern: what fits them was asked for.
            names_suffix: whether the pattern says which suffix it wants.
        """
        internal = _internal_names(relative, asked_for)
        reader = self._readers.get(suffix)
        if reader is not None and not (names_suffix or reader.is_found(path)):
            self.skipped.others[suffix] += 1
            return False
        is_of_a_table = reader is not None and reader.is_container
        if internal and (is_of_a_table or _WRITERS_FOLDERS.intersection(internal)):
            self.skipped.internal += 1
        elif not names_suffix and suffix in RAW_SUFFIXES and reader is not None and self._has_image_beside(path):
            self.skipped.raws += 1
        elif names_suffix or reader is not None:
            return True
        elif suffix in UNREADABLE_IMAGE_SUFFIXES:
            self.skipped.images[suffix] += 1
        elif internal and relative.endswith(internal[-1]):  # `_SUCCESS`, `_metadata`, `_committed_…`
            self.skipped.internal += 1
        else:
            self.skipped.others[shown_name(suffix)] += 1
        return False

    def _has_image_beside(self, path: str) -> bool:
        """Whether a camera raw file lies beside an image of the same name, as cameras write two files of a photograph.

        Both would be captioned alike, and have one caption file.
        """
        folder, name = os.path.split(path)
        if folder != self._stems[0]:
            self._stems = folder, _stems(folder)
        return os.path.splitext(name)[0] in self._stems[1]

    def _source(self, path: str, relative: str, suffix: str) -> Source:
        """The source at an absolute path."""
        reader = self._readers.get(suffix)
        if reader is None:
            if suffix in NOT_READ:
                raise UsageError(f"{shown_name(path)} {NOT_READ[suffix]}")
            reader = DEFAULT_READER
        try:
            status = status_of(path)
        except OSError:  # reading its rows tells what is wrong
            if address_of(path) is not None:
                raise
            status = FileStatus(0, 0)
        file = Path(path)
        return Source(printable_name(relative), file, reader.kind, self._opened[reader.kind].count(file), *status)


def _stems(folder: str) -> frozenset[str]:
    """Names without extension of the images in a folder that are no camera raw files."""
    others = DEFAULT_READER.suffixes - RAW_SUFFIXES
    try:
        return frozenset(os.path.splitext(name)[0] for name in names_in(Path(folder)) if suffix_of(name) in others)
    except OSError:
        return frozenset()


def _internal_names(relative: str, asked_for: Sequence[str]) -> list[str]:
    """Names on a path that readers of tables skip: with `_` at the beginning, but for partitions (`_day=1`)."""
    if "_" not in relative:
        return []
    names = (name for name in relative.split(os.sep) if name.startswith("_") and "=" not in name)
    return [name for name in names if not any(fnmatchcase(name, part) for part in asked_for)]
