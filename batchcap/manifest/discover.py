"""Owns the finding of sources: folders, files and glob patterns become files in a stable order."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from batchcap.config import InputConfig
from batchcap.errors import UsageError
from batchcap.manifest.parquet import count_rows
from batchcap.manifest.source import Source, SourceKind, is_address, printable_name
from batchcap.terminal import shown_name

log = logging.getLogger(__name__)

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
_IMAGE_EXTENSIONS = """
    apng avif avifs bmp bw cur dds dib gif icns ico im j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pcx pfm pgm png
    pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp xbm xpm
"""
IMAGE_SUFFIXES = frozenset(f".{extension}" for extension in _IMAGE_EXTENSIONS.split())
# What holds pictures and yet is none: each of them would be one failed row, and nobody would know why.
_ARCHIVE = "is an archive, which batchcap does not open: unpack it and give the folder"
_TABLE = "is a table that batchcap does not read: convert it to Parquet, with pandas or DuckDB for example"
_JOB_FILE = "is a job file: give it to `batchcap run`"
_NOT_READ = {
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"), _ARCHIVE),
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow", ".feather", ".avro", ".orc"), _TABLE),
    ".toml": _JOB_FILE,
}
_SHOWN_SUFFIXES = 5


def discover(config: InputConfig, exclude: Path) -> Iterator[Source]:
    """Find the sources of a job, one after the other: a million of them are never held together.

    In the order of the inputs; inside a folder (searched with all folders below it) by relative path. A file that two
    inputs lead to comes twice; the plan counts it once. Hidden files and folders, and `exclude`, are passed over, and
    files whose extension is neither a picture's nor a Parquet file's; how many those were is logged. A file that is
    named itself is taken whatever its extension is, also by a pattern that ends with one (`*.dat`). A pattern without
    `**` that matches folders takes all that is in them.

    Args:
        config: the inputs.
        exclude: the job's own output.

    Yields:
        Sources; an id is the path inside the input folder.

    Raises:
        UsageError: an input does not exist or is an address (told before the first source), has no picture, or is an
            archive or another table; a Parquet file can't be read, or all of them are empty.
    """
    search = _Search(os.path.realpath(exclude))
    for name in config.inputs:
        _require_input(name)
    rows = 0
    for name in config.inputs:
        found = False
        for source in search.input(name):
            found = True
            rows += source.rows
            yield source
        if not found:
            raise UsageError(search.nothing_found(name))
        if search.skipped:
            log.warning("%s: %s", shown_name(name), search.passed_over())
    if not rows:
        raise UsageError(
            f"no Parquet file in {', '.join(map(shown_name, config.inputs))} has a row: name files that have some"
        )


def _require_input(name: str) -> None:
    if is_address(name):
        raise UsageError(f"batchcap works offline and fetches nothing: download {shown_name(name)} and give the file")
    path = os.path.expanduser(name)
    if not os.path.lexists(path) and not glob.has_magic(path):
        raise UsageError(f"the input {shown_name(name)} does not exist: check how it is written")


@dataclass(slots=True)
class _Search:
    """What has been passed over in the input at work."""

    exclude: str
    skipped: Counter[str] = field(default_factory=Counter)

    def input(self, name: str) -> Iterator[Source]:
        """The sources of one input."""
        self.skipped.clear()
        path = os.path.expanduser(name)
        if os.path.isdir(path):
            yield from self._folder(path)
        elif os.path.lexists(path):
            yield _source(os.path.abspath(path), os.path.basename(path), _suffix(path))
        else:
            yield from self._pattern(path)

    def nothing_found(self, name: str) -> str:
        """What to say of an input without a picture."""
        text = f"no picture and no Parquet file in {shown_name(name)}"
        if self.skipped:
            text += f"; {self.passed_over()}"
            (suffix, _count), *_others = self.skipped.most_common(1)
            advice = _NOT_READ.get(suffix)
            return text + (f". A {suffix} file {advice}" if advice else ". Name a file itself to take it as it is")
        return f"{text}: name a folder or a pattern that has some"

    def passed_over(self) -> str:
        """How many files of the last input were no pictures by their extension, and which these are."""
        most = self.skipped.most_common(_SHOWN_SUFFIXES)
        kinds = ", ".join(f"{suffix or 'no extension'} {count}" for suffix, count in most)
        if len(self.skipped) > len(most):
            kinds += ", …"
        count = self.skipped.total()
        return f"{count} other file{'' if count == 1 else 's'} passed over ({kinds})"

    def _pattern(self, pattern: str) -> Iterator[Source]:
        base = _fixed_part(pattern)
        suffix = os.path.splitext(pattern)[1]
        names_suffix = bool(suffix) and not glob.has_magic(suffix)
        for path in _matches(pattern, self.exclude):
            if os.path.isdir(path):
                # With `**` the files below are matches themselves.
                if "**" not in pattern:
                    yield from self._folder(path, base)
            elif names_suffix or self._is_wanted(_suffix(path)):
                yield _source(os.path.abspath(path), os.path.relpath(path, base), _suffix(path))

    def _folder(self, folder: str, base: str | None = None) -> Iterator[Source]:
        """The sources below a folder; their ids are relative to `base`, or to the folder."""
        above = "" if base is None else os.path.relpath(folder, base)
        absolute = os.path.abspath(folder)
        for relative in _walk(absolute, self.exclude):
            suffix = _suffix(relative)
            if self._is_wanted(suffix):
                yield _source(os.path.join(absolute, relative), os.path.join(above, relative), suffix)

    def _is_wanted(self, suffix: str) -> bool:
        if suffix in IMAGE_SUFFIXES or suffix in PARQUET_SUFFIXES:
            return True
        self.skipped[shown_name(suffix)] += 1
        return False


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _source(path: str, relative: str, suffix: str) -> Source:
    """The source at an absolute path."""
    name = printable_name(relative)
    if suffix in _NOT_READ:
        raise UsageError(f"{shown_name(path)} {_NOT_READ[suffix]}")
    try:
        status = os.stat(path)
        size_bytes, mtime_ns = status.st_size, status.st_mtime_ns
    except OSError:  # reading its rows tells what is wrong
        size_bytes = mtime_ns = 0
    if suffix not in PARQUET_SUFFIXES:
        return Source(name, Path(path), SourceKind.IMAGE, 1, size_bytes, mtime_ns)
    return Source(name, Path(path), SourceKind.PARQUET, count_rows(Path(path)), size_bytes, mtime_ns)


def _walk(folder: str, exclude: str) -> Iterator[str]:
    """Relative paths of all files below a folder, in the order of their bytes.

    Links to folders are followed, but never in a circle. No more is held than the names in one folder and in those
    above it.
    """
    seen: set[tuple[int, int]] = set()
    trail = [("", iter(_names(folder, exclude, seen)))]
    while trail:
        below, names = trail[-1]
        name = next(names, None)
        if name is None:
            trail.pop()
            continue
        relative = below + os.fsdecode(name)
        if name.endswith(b"/"):
            trail.append((relative, iter(_names(os.path.join(folder, relative), exclude, seen))))
        else:
            yield relative


def _names(folder: str, exclude: str, seen: set[tuple[int, int]]) -> list[bytes]:
    """What is in a folder; a folder's name ends with a slash, so that the names sort as the paths below them do.

    Bytes: they take half the memory of text, and their order is the one wanted.
    """
    names: list[bytes] = []
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return names
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(os.fsencode(folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if not _is_folder(entry):
                    names.append(entry.name)
                elif os.path.realpath(os.fsdecode(entry.path)) != exclude:
                    names.append(entry.name + b"/")
    except OSError as error:
        log.warning("can't look into the folder %s (%s): what is in it is left out", shown_name(folder), error.strerror)
    names.sort()
    return names


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: its row says what is wrong
        return False


def _matches(pattern: str, exclude: str) -> list[str]:
    """Paths that a pattern matches, in order, without those below `exclude`.

    `**` walks in circles where a link leads back up: of several ways into one folder only the shortest counts.
    """
    matches = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)
    real = {parent: os.path.realpath(parent) for parent in {os.path.dirname(path) for path in matches}}
    shortest: dict[str, str] = {}
    for parent in sorted(real, key=lambda name: (len(name), os.fsencode(name))):
        shortest.setdefault(real[parent], parent)
    return [
        path
        for path in matches
        if shortest[real[parent := os.path.dirname(path)]] == parent
        and not f"{real[parent]}{os.sep}".startswith(f"{exclude}{os.sep}")
        and os.path.join(real[parent], os.path.basename(path)) != exclude
    ]


def _fixed_part(pattern: str) -> str:
    """The folder above the first wildcard: ids are relative to it."""
    parts = pattern.split(os.sep)
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return os.sep.join(parts[:fixed]) or (os.sep if pattern.startswith(os.sep) else ".")
