"""Owns how a file that is written whole is known as batchcap's own: by its size and time, before and after."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchcap.core.atomic import Leftovers, atomic_file
from batchcap.outputs.ledger import Entry, Ledger

_OF_MANY_ROWS = -1


def stamp_of(path: Path) -> str:
    """Another text for another state of a file; of a link, for another link."""
    status = path.lstat()
    return f"{status.st_size} {status.st_mtime_ns}"


def is_foreign(ledger: Ledger, path: Path) -> bool:
    """Whether something is there that batchcap has not written as it is now."""
    if not os.path.lexists(path):
        return False
    key = os.fsencode(path)
    entry = ledger.entries([key]).get(key)
    return entry is None or stamp_of(path) not in (entry.digest, (entry.before or b"").decode())


@contextmanager
def owned_file(ledger: Ledger, path: Path) -> Iterator[Path]:
    """As `atomic_file`, and the file is batchcap's own from now on.

    What the file will be, and what it still is, is noted before it gets its name: a kill may come in between.

    Raises:
        StorageError: the file system refused.
    """
    Leftovers().remove([path])
    with atomic_file(path) as temporary:
        yield temporary
        before = stamp_of(path).encode() if os.path.lexists(path) else b""
        ledger.note([Entry(os.fsencode(path), _OF_MANY_ROWS, stamp_of(temporary), before)])
