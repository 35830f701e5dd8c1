"""Owns the names of files that hold one row's caption each: beside the image, or in a tree of their own."""

import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from batchcap.core.address import address_of, is_web
from batchcap.core.errors import UsageError
from batchcap.core.records import CaptionRow
from batchcap.core.sources import FileAt, ImageRef
from batchcap.core.text import shown_name
from batchcap.inputs.registry import DEFAULT_READER

# Not allowed in names on other systems, or of a meaning of their own in shells and paths.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>"|?*\\]')
_MAX_NAME_BYTES = 200
_SHOWN_COLLISIONS = 3


def without_suffix(name: str) -> str:
    """A path without its extension, where that is one of images."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - an id is no path
    return stem if suffix.lower() in DEFAULT_READER.suffixes else name


def beside(image: ImageRef | None, *, full_names: bool) -> Path | None:
    """The path of a file beside an image, without the new extension; None where the image is no file of its own."""
    if not isinstance(image, FileAt) or image.offset or image.size is not None or not can_be_beside(image.path):
        return None
    return Path(image.path if full_names else without_suffix(image.path))


def can_be_beside(path: str | Path) -> bool:
    """Whether a file can be written beside this one: web servers take none."""
    address = address_of(path)
    return address is None or not is_web(address)


def in_tree(row_id: str, folder: Path, *, full_names: bool) -> Path:
    """The path of a row's file below a folder, without the new extension.

    Whatever an id holds, its file lies inside the folder: `..` and what systems do not allow become `_`.
    """
    name = row_id if full_names else without_suffix(row_id)
    parts = [_safe(part) for part in name.replace(":", "/").split("/") if part]
    return folder.joinpath(*parts or ["_"])


def _safe(name: str) -> str:
    name = _UNSAFE.sub("_", name)
    if name.strip(". ") == "":
        return "_" * len(name)
    encoded = name.encode(errors="replace")
    if len(encoded) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{encoded[:_MAX_NAME_BYTES].decode(errors='ignore')}~{digest}"


def target_of(row: CaptionRow, image: ImageRef | None, where: Path | None, *, full_names: bool) -> Path | None:
    """The path of a row's file, without the new extension; None where it has no place."""
    if where is None:
        return beside(image, full_names=full_names)
    return in_tree(row.id, where, full_names=full_names)


def require_no_collisions(targets: Callable[[], Iterable[tuple[str, Path]]]) -> None:
    """Refuse images whose captions would have one file, also where names differ in case only.

    Args:
        targets: gives the images' names and their targets, as often as it is called.

    Raises:
        UsageError: there are some.
    """
    doubled = _doubled(_key(target) for _name, target in targets())
    if not doubled:
        return
    groups: dict[str, list[str]] = {}
    for name, target in targets():
        if _key(target) in doubled:
            groups.setdefault(os.fspath(target).casefold(), []).append(shown_name(name))
    pairs = [" and ".join(names) for names in groups.values() if len(names) > 1]
    if not pairs:  # two names of one hash
        return
    more = len(pairs) - _SHOWN_COLLISIONS
    raise UsageError(
        f"several images would have one caption file: {'; '.join(pairs[:_SHOWN_COLLISIONS])}"
        f"{f'; and {more} more' if more > 0 else ''}. Where the extension alone differs, --full-names keeps it "
        "(a.jpg.txt); else rename one, or take a form with one file for all, such as jsonl"
    )


def _key(target: Path) -> int:
    """64 bits of a name, the same for names that differ in case only: a million of them take 8 MB."""
    digest = hashlib.blake2b(os.fsencode(os.fspath(target).casefold()), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _doubled(keys: Iterator[int]) -> frozenset[int]:
    found, counts = np.unique(np.frombuffer(array("q", keys), np.int64), return_counts=True)
    return frozenset(found[counts > 1].tolist())
