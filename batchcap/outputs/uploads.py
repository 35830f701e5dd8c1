"""Owns what batchcap puts at addresses: what is there, whose it is, and that no content is sent twice.

An object is noted before it is put, and its version afterwards. So whatever a kill leaves behind is known: what has the
noted version is ours, what has another one is ours only if it has the content that was about to be put.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from batchcap.core.errors import BatchcapError, StorageError, UsageError
from batchcap.core.text import one_line
from batchcap.outputs.ledger import Ledger, PutObject, digest_of
from batchcap.remote.attempts import ChangedError
from batchcap.remote.listing import listing
from batchcap.remote.objects import Look, look, read_range, read_whole
from batchcap.remote.puts import Put, goes_together, put, put_together, remove, require_allowed

# Requests under way at once: most of the time of a small one is waiting.
_AT_ONCE = 16
# Objects that are noted together.
_NOTED_AT_ONCE = 256
# So many names of a folder are asked for one by one; for more of them the folder is listed.
_FEW = 16
_PIECE_BYTES = 8 << 20
_SEEN = """
CREATE TABLE objects (address TEXT PRIMARY KEY, size_bytes INTEGER, version TEXT) WITHOUT ROWID;
CREATE TABLE folders (address TEXT PRIMARY KEY) WITHOUT ROWID;
"""

Content = bytes | Path
Result = TypeVar("Result")
Thing = TypeVar("Thing")


class UploadError(StorageError):
    """A store refuses what is asked of it, or somebody else has written there."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object that is there.

    Attributes:
        look: at it.
        own_digest: of its content, where batchcap has put it and nobody else has since; else empty.
    """

    look: Look
    own_digest: str


class Uploads:
    """The objects of one job's forms. Close it at the end.

    Args:
        ledger: in which they are noted.
        is_allowed: whether addresses may be asked at all (`--allow-remote`).
    """

    def __init__(self, ledger: Ledger, *, is_allowed: bool) -> None:
        self._ledger = ledger
        self._is_allowed = is_allowed
        self._seen = _Seen()

    def close(self) -> None:
        """Nothing more is asked."""
        self._seen.close()

    def require_place(self, folder: str) -> None:
        """Find out whether there is a place for objects, and whether they may be put there, without putting one.

        Args:
            folder: address that they are to lie below.

        Raises:
            UsageError: it is not so.
            NetworkError: that can't be found out now.
        """
        try:
            with self._told(folder):
                next(listing(folder), None)
                require_allowed(f"{folder}/.batchcap")
        except UploadError as error:
            raise UsageError(str(error)) from error

    def is_empty(self, folder: str) -> bool:
        """Whether nothing lies below an address; raises as `found`."""
        with self._told(folder):
            return next(listing(folder), None) is None

    def look_at(self, addresses: Iterable[str]) -> None:
        """See what is at addresses that were not looked at yet, many at once; raises as `found`."""
        folders = dict[str, list[str]]()
        for address in addresses:
            if not self._seen.knows(address):
                folders.setdefault(_folder_of(address), []).append(address)
        few = [address for names in folders.values() if len(names) <= _FEW for address in names]
        for folder, names in folders.items():
            if len(names) > _FEW:
                self.list_folder(folder)
        for address, outcome in zip(few, at_once(few, _look_or_none), strict=True):
            with self._told(address):
                self._seen.note(address, result_of(outcome))

    def list_folder(self, folder: str) -> None:
        """See what lies in a folder, if that was not done yet; raises as `found`."""
        if self._seen.has_listed(folder):
            return
        with self._told(folder):
            files = ((f"{folder}/{one.name}", one.look) for one in listing(folder) if one.look is not None)
            self._seen.note_folder(folder, files)

    def found(self, address: str) -> Found | None:
        """What is at an address, as it was when this run looked there first, or has put something there; None: nothing.

        Where nobody has looked yet, its folder is listed.

        Raises:
            UploadError: it can't be asked: no credentials, no bucket.
            NetworkError: the network or the store does not answer.
            UsageError: addresses are not to be asked.
        """
        if not self._seen.knows(address):
            self.list_folder(_folder_of(address))
        seen = self._seen.at(address)
        if seen is None:
            return None
        known = self._ledger.objects([address]).get(address)
        if known is None:
            return Found(seen, "")
        if seen.version and seen.version == known.version:
            return Found(seen, known.digest)
        expected = known.coming or ("" if seen.version else known.digest)
        if not expected:
            return Found(seen, "")
        if self._digest_at(address, seen) != expected:
            self._ledger.note_objects([replace(known, coming="")])
            return Found(seen, "")
        self._ledger.note_objects([PutObject(address, expected, seen.size_bytes or 0, seen.version)])
        return Found(seen, expected)

    def read(self, address: str, most_bytes: int) -> bytes:
        """The content of an object, up to one byte more than `most_bytes`; raises as `found`."""
        with self._told(address):
            return read_whole(address, most_bytes)

    def put(self, contents: Mapping[str, Content]) -> None:
        """Make objects hold their contents, each as a whole; those that do already are left alone.

        Only what was seen at an address is replaced, where a store can compare. The caller looks whose that is.

        Raises:
            UploadError: it is refused, or somebody else has written there meanwhile.
            NetworkError, UsageError: as `found`.
        """
        rest = iter(contents.items())
        while several := dict(islice(rest, _NOTED_AT_ONCE)):
            self._put(several)

    def remove(self, addresses: Sequence[str]) -> None:
        """Remove those of the objects that are batchcap's own, as it has put them; raises as `put`."""
        self.look_at(addresses)
        found = {address: self.found(address) for address in addresses}
        own = [address for address, one in found.items() if one is not None and one.own_digest]
        if own:
            with self._told(own[0]):
                remove(own)
        self._ledger.forget_objects(addresses)
        for address in own:
            self._seen.note(address, None)

    def _put(self, contents: Mapping[str, Content]) -> None:
        self.look_at(contents)
        digests, wanted = dict[str, str](), list[Put]()
        for address, content in contents.items():
            digest, found = _digest_of(content), self.found(address)
            if found is None or found.own_digest != digest:
                digests[address] = digest
                wanted.append(Put(address, content, None if found is None else found.look.version))
        if not wanted:
            return
        known = self._ledger.objects(digests)
        empty = {address: PutObject(address, "", 0, "") for address in digests}
        self._ledger.note_objects(replace((empty | known)[one], coming=digest) for one, digest in digests.items())
        done, error = list[PutObject](), None
        for one, outcome in zip(wanted, self._sent(wanted), strict=True):
            try:
                with self._told(one.address):
                    seen = self._arrived(one, outcome, digests[one.address])
            except BatchcapError as refused:
                error = error or refused
                self._seen.forget(one.address)
            else:
                self._seen.note(one.address, seen)
                done.append(PutObject(one.address, digests[one.address], seen.size_bytes or 0, seen.version))
        self._ledger.note_objects(done)
        if error is not None:
            raise error

    @staticmethod
    def _sent(wanted: Sequence[Put]) -> list[str | Exception]:
        """What became of each: its version, or an error."""
        if not goes_together(wanted[0].address):
            return at_once(wanted, put)
        try:
            return list(put_together(wanted))
        except Exception as error:  # noqa: BLE001 - each of them has failed with it
            return [error] * len(wanted)

    def _arrived(self, one: Put, outcome: str | Exception, digest: str) -> Look:
        """What an object looks like now that it was put."""
        is_gone = isinstance(outcome, FileNotFoundError) and one.before is not None
        if isinstance(outcome, ChangedError) or is_gone:
            # Or an attempt has put it, and the answer was lost.
            now = _look_or_none(one.address)
            if now is not None and now.size_bytes == one.size_bytes and self._digest_at(one.address, now) == digest:
                return now
            raise UploadError(
                f"{one_line(one.address)} is not what it was: somebody else has written there meanwhile, and that "
                "stays. Run the same command again"
            )
        return Look(one.size_bytes, result_of(outcome))

    def _digest_at(self, address: str, seen: Look) -> str:
        digest, start = hashlib.sha256(), 0
        with self._told(address):
            while data := read_range(address, start, _PIECE_BYTES, seen.version):
                digest.update(data)
                start += len(data)
        return digest.hexdigest()

    @contextmanager
    def _told(self, address: str) -> Iterator[None]:
        """Errors of a store as a person is told of them."""
        if not self._is_allowed:
            raise UsageError(f"{one_line(address)} is an address, and nothing is sent there without --allow-remote")
        try:
            yield
        except FileNotFoundError as error:
            raise UploadError(
                f"can't write to {one_line(address)}: there is no such bucket or repository: make it, or name another "
                "place"
            ) from error
        except OSError as error:
            raise UploadError(f"can't write to {one_line(address)}: {error.strerror or error}") from error


class _Seen:
    """What this run saw at addresses, in a temporary file: there may be a million of them."""

    def __init__(self) -> None:
        self._opened: sqlite3.Connection | None = None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._opened is None:
                self._opened = sqlite3.connect("", isolation_level=None)  # a file that is gone with the process
                self._opened.executescript(_SEEN)
            yield self._opened
        except sqlite3.Error as error:
            raise StorageError(
                f"can't keep the names of objects in a temporary file ({error}): free some space, or set TMPDIR to "
                "another folder"
            ) from error

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def knows(self, address: str) -> bool:
        with self._connection() as connection:
            found = connection.execute("SELECT 1 FROM objects WHERE address = ?", (address,)).fetchone()
        return found is not None or self.has_listed(_folder_of(address))

    def has_listed(self, folder: str) -> bool:
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM folders WHERE address = ?", (folder,)).fetchone() is not None

    def at(self, address: str) -> Look | None:
        with self._connection() as connection:
            query = "SELECT size_bytes, version FROM objects WHERE address = ?"
            found = connection.execute(query, (address,)).fetchone()
        return None if found is None or found[1] is None else Look(found[0], found[1])

    def note(self, address: str, seen: Look | None) -> None:
        values = (address, None, None) if seen is None else (address, seen.size_bytes, seen.version)
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?)", values)

    def note_folder(self, folder: str, files: Iterable[tuple[str, Look]]) -> None:
        rows = ((address, seen.size_bytes, seen.version) for address, seen in files)
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                # What was put here is known better than by a list from before.
                connection.executemany("INSERT OR IGNORE INTO objects VALUES (?, ?, ?)", rows)
                connection.execute("INSERT OR IGNORE INTO folders VALUES (?)", (folder,))
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def forget(self, address: str) -> None:
        with self._connection() as connection:
            connection.execute("DELETE FROM objects WHERE address = ?", (address,))
            connection.execute("DELETE FROM folders WHERE address = ?", (_folder_of(address),))


def _folder_of(address: str) -> str:
    return address.rpartition("/")[0]


def _look_or_none(address: str) -> Look | None:
    try:
        return look(address)
    except FileNotFoundError:
        return None


def _digest_of(content: Content) -> str:
    if isinstance(content, bytes):
        return digest_of(content)
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def at_once(things: Sequence[Thing], ask: Callable[[Thing], Result]) -> list[Result | Exception]:
    """What comes of asking for each of several things, some at once: a result or an error."""

    def asked(thing: Thing) -> Result | Exception:
        try:
            return ask(thing)
        except Exception as error:  # noqa: BLE001 - raised by who wants the result
            return error

    if len(things) < 2:
        return [asked(thing) for thing in things]
    with ThreadPoolExecutor(min(_AT_ONCE, len(things)), "uploads") as pool:
        return list(pool.map(asked, things))


def result_of(outcome: Result | Exception) -> Result:
    """A result; or its error is raised."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
