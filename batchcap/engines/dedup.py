"""Owns which images were met before: equal bytes, of which the same is asked, have the same captions."""

import hashlib
import threading
from collections import OrderedDict

# Images remembered, those met longest ago forgotten first; 34 MB when there are so many.
REMEMBERED_IMAGES = 131_072


class SeenImages:
    """The row that had each image first. Safe to call from several threads."""

    def __init__(self, capacity: int = REMEMBERED_IMAGES) -> None:
        self._capacity = capacity
        self._rows: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def first_row(self, sha256: str, caption_key: str, index: int) -> int:
        """The row that had the image first, which is `index` if nobody remembers one.

        Args:
            sha256: hex digest of the image's encoded bytes.
            caption_key: what decides the captions beside them, see `Request.caption_key`.
            index: the row's `ImageRow.index`.
        """
        key = hashlib.sha256(bytes.fromhex(sha256) + bytes.fromhex(caption_key)).digest()
        with self._lock:
            first = self._rows.setdefault(key, index)
            self._rows.move_to_end(key)
            if len(self._rows) > self._capacity:
                self._rows.popitem(last=False)
        return first
