"""Owns which files lie below a folder at an address or match a pattern there, in the order of a folder's here."""

import os
import re
from collections.abc import Iterator

from batchcap.core.address import address_of
from batchcap.inputs.storage import remember


class RemoteWalk:
    """A search for files at addresses; what `walk.Walk` is for this machine. Hidden names are passed over."""

    def below(self, folder: str) -> Iterator[str]:
        """Relative paths of all files below a folder, in the order of their bytes; no more than some pages are held."""
        address = address_of(folder)
        if address is None:
            raise ValueError(folder)
        yield from self._below(address, "")

    def _below(self, address: str, above: str) -> Iterator[str]:
        from batchcap.remote.listing import listing  # noqa: PLC0415 - only for addresses

        for entry in listing(address):
            path = f"{address}/{entry.name}"
            if entry.name.startswith("."):
                continue
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
