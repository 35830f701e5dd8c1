"""Owns which files lie below a folder at an address or match a pattern there, in the order of a folder's here."""

import os
import re
from collections.abc import Iterator

from batchcap.core.address import address_of
from batchcap.inputs.storage import remember


class RemoteWalk:
    """A search for files at addresses; what `walk.Walk` is for this machine. Hidden names are passed over."""

    def below(self, folder: str) -> Iterator[str]:
        """Relative paths of all files below a folder, in the order of their bytes.

        No more is held than what is in one folder and in those above it.
        """
        address = address_of(folder)
        if address is None:
            raise ValueError(folder)
        yield from self._below(address, "")

    def _below(self, address: str, above: str) -> Iterator[str]:
        from batchcap.remote.objects import entries  # noqa: PLC0415 - only for addresses

        found = {}
        for entry in entries(address):
            if not entry.name.startswith("."):
                found[os.fsencode(entry.name + ("" if entry.look else "/"))] = entry
        for key in sorted(found):
            entry = found.pop(key)
            path = f"{address}/{entry.name}"
            if entry.look is None:
                yield from self._below(path, f"{above}{entry.name}/")
            else:
                remember(path, entry.look)
                yield above + entry.name

    def matches(self, pattern: str, base: str) -> Iterator[str]:
        """Paths of the files that a pattern matches, in order."""
        from fsspec.utils import glob_translate  # noqa: PLC0415

        fits = re.compile(glob_translate(pattern))
        for name in self.below(base):
            path = os.path.join(base, name)
            if fits.match(path):
                yield path
