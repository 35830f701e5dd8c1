"""Owns `html-alt`: the pages of a site with captions as the alt texts of its images, in a folder of their own."""

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from batchcap.config import Existing, OutputsConfig
from batchcap.core.address import address_of
from batchcap.core.errors import StorageError, UsageError
from batchcap.core.text import shown_name
from batchcap.inputs.columns import shown
from batchcap.outputs.files import Files
from batchcap.outputs.form import FinishedPart, Form, Job, Written, wanted_answers
from batchcap.outputs.html_page import Page, PageError, PageImage
from batchcap.outputs.ledger import Entry, digest_of
from batchcap.outputs.names import beside
from batchcap.outputs.texts import accessible, joined

log = logging.getLogger(__name__)

_SUFFIXES = (".html", ".htm")
_OF_MANY_ROWS = -1
_PAGES_AT_ONCE = 64
_MAX_PAGE_BYTES = 1 << 25


class HtmlAlt(Form):
    """Pages with alt texts. Those that do not change are not written."""

    name = "html-alt"

    def __init__(self, job: Job, where: Path | None, config: OutputsConfig) -> None:
        super().__init__(job, where, config)
        self._files = Files(job.uploads)

    @property
    def reads_inputs(self) -> bool:
        """For where the images are."""
        return True

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]] = tuple) -> None:  # noqa: ARG002
        """Refuse folders that are none, or of which one lies in the other: pages of the site would be overwritten."""
        pages, where = self._folders()
        address = address_of(where)
        if address is not None:
            self.job.uploads.require_place(address)
        if not pages.is_dir():
            raise UsageError(f"--html-pages {shown_name(str(pages))} is no folder: name the one with the site's pages")
        if where.exists() and not where.is_dir():
            raise UsageError(f"{shown_name(str(where))} is no folder: name another (html-alt:FOLDER)")
        if pages.is_relative_to(where) or where.is_relative_to(pages):
            raise UsageError(
                f"the pages can't be written to {shown_name(str(where))}, since it and --html-pages "
                f"{shown_name(str(pages))} lie in one another, and the site is never changed: name a folder elsewhere"
            )
        if self.config.existing is Existing.FAIL:
            for page in _pages_of(pages):
                target = where / page.relative_to(pages)
                if self._files.is_there(target) and not self._is_ours(target):
                    raise UsageError(
                        f"{shown(target)} is there already, and --existing fail was asked for: move it away"
                    )

    def write(self, parts: Iterable[FinishedPart], *, skips_known: bool = False) -> Written:  # noqa: ARG002
        """Write the pages that get alt texts from any of the parts."""
        self.check()
        pages, where = self._folders()
        done = Written(self.name, f"in {shown(where)}")
        with _alt_texts() as known:
            for part in parts:
                done.left_out += self.left_out(part.counts)
                known.execute("BEGIN")
                known.executemany("INSERT OR REPLACE INTO alts VALUES (?, ?)", self._alts_of(part, done))
                known.execute("COMMIT")
            contents = dict[Path, bytes]()
            for path in _pages_of(pages):
                target = where / path.relative_to(pages)
                if not self._is_writable(target):
                    done.kept += 1
                    continue
                content = self._filled(path, pages, known, done)
                if content is not None:
                    contents[target] = content
                    done.files += 1
                if len(contents) >= _PAGES_AT_ONCE:
                    self._write_files(contents)
                    contents = {}
            self._write_files(contents)
        return done

    def _folders(self) -> tuple[Path, Path]:
        if self.config.html_pages is None or self.given_where is None:
            raise UsageError("html-alt needs the folder with the pages of the site: add --html-pages FOLDER")
        where = self.given_where
        is_here = address_of(where) is None
        return Path(self.config.html_pages).expanduser().resolve(), where.resolve() if is_here else where

    def _alts_of(self, part: FinishedPart, done: Written) -> Iterator[tuple[bytes, str]]:
        """Image files of a part, and their alt texts."""
        rows = dict(enumerate(part.rows, part.shard.first_row))
        with suppress(UsageError):  # an input is gone, and so are its images
            for image in part.images():
                answers = wanted_answers(rows[image.index], self.job.prompts, self.config.verdicts)
                path = beside(image.image, full_names=True)
                if answers and path is not None:
                    yield _key(path), accessible(answers, self.config.max_alt_letters).alt
                elif answers:
                    done.unplaced += len(answers)

    def _filled(self, path: Path, pages: Path, known: sqlite3.Connection, done: Written) -> bytes | None:
        """A page with alt texts; None where nothing changes."""
        try:
            page = Page(_content_of(path), path.as_posix())
        except (PageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("the page %s is left as it is: %s", shown_name(str(path)), reason)
            return None
        alts = dict[PageImage, str]()
        for image in page.images:
            caption = _caption_of(image, pages, known)
            if caption is None:
                done.uncaptioned += 1
                continue
            alt = self._alt(image, caption)
            if alt is None:
                done.kept_texts += 1
                continue
            done.captions += 1
            if alt != image.alt:
                alts[image] = alt
        return page.with_alts(alts) if alts else None

    def _alt(self, image: PageImage, caption: str) -> str | None:
        """The alt text that an image is to have; None: it keeps its own. An empty one says that it is decoration."""
        policy = self.config.existing
        if image.alt is None or policy is Existing.REPLACE:
            return caption
        if policy in (Existing.APPEND, Existing.PREPEND) and image.alt.strip():
            return joined(image.alt, caption, policy)
        return None

    def _is_writable(self, target: Path) -> bool:
        return not self._files.is_there(target) or self.config.existing is Existing.REPLACE or self._is_ours(target)

    def _is_ours(self, target: Path) -> bool:
        """Whether a page is as it was written, or as it was before a kill that came with the next writing."""
        key = os.fsencode(target)
        entry = self.job.ledger.entries([key]).get(key)
        return entry is not None and self._digest_at(target) in (entry.digest, (entry.before or b"").decode())

    def _digest_at(self, target: Path) -> str:
        if address_of(target) is None:
            return _digest_of_file(target)
        now = self._files.now(target)
        return "" if now is None else now.digest

    def _write_files(self, contents: dict[Path, bytes]) -> None:
        entries = []
        for target, content in contents.items():
            before = self._digest_at(target).encode() if self._files.is_there(target) else None
            entries.append(Entry(os.fsencode(target), _OF_MANY_ROWS, digest_of(content), before))
        self.job.ledger.note(entries)
        self._files.remove_leftovers(contents)
        self._files.write(contents)


@contextmanager
def _alt_texts() -> Iterator[sqlite3.Connection]:
    """A table of image files and alt texts on the disk: those of a large job would fill the memory."""
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(_temporary_folder())
            connection = sqlite3.connect(folder / "alts.sqlite", isolation_level=None)
            stack.callback(connection.close)
            connection.execute("PRAGMA journal_mode=OFF")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("CREATE TABLE alts (path BLOB PRIMARY KEY, alt TEXT) WITHOUT ROWID")
            yield connection
    except sqlite3.Error as error:
        raise _no_room(error) from error


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.mkdtemp(prefix="batchcap-")
    except OSError as error:
        raise _no_room(error) from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_room(error: Exception) -> StorageError:
    return StorageError(
        f"can't keep the alt texts in a temporary file ({error}): free some space, or set TMPDIR to another folder"
    )


def _caption_of(image: PageImage, pages: Path, known: sqlite3.Connection) -> str | None:
    # What begins with `/` is meant in the site, what does not leads from the page to a path of the disk.
    for path in (one for place in image.places for one in (pages / place.lstrip("/"), Path(place))):
        with suppress(ValueError):  # a NUL in it
            found = known.execute("SELECT alt FROM alts WHERE path = ?", (_key(path),)).fetchone()
            if found is not None:
                return str(found[0])
    return None


def _key(path: Path) -> bytes:
    """A file by a name that it has once, whatever links lead to its folder."""
    return os.fsencode(Path(_real(os.path.normpath(path.parent))) / path.name)


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _pages_of(folder: Path) -> Iterator[Path]:
    """The pages in a folder and those inside of it, in a stable order."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in sorted(names) if name.lower().endswith(_SUFFIXES))


def _content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_PAGE_BYTES + 1)
    if len(content) > _MAX_PAGE_BYTES:
        raise PageError(f"it is larger than {_MAX_PAGE_BYTES >> 20} MiB")
    return content


def _digest_of_file(path: Path) -> str:
    try:
        return digest_of(path.read_bytes())
    except OSError:  # a folder, or not to be read: nothing of ours
        return ""
