"""Owns where the cache folder is: the demo bundle, what was tuned, weights that decoders share."""

import os
from pathlib import Path

from batchcap.core.errors import UsageError


def cache_folder() -> Path:
    """Where the demo bundle is kept: $BATCHCAP_CACHE, else $XDG_CACHE_HOME/batchcap, else ~/.cache/batchcap.

    Raises:
        UsageError: nothing says where.
    """
    named = os.environ.get("BATCHCAP_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchcap"
    except RuntimeError:  # a container's user without a home
        raise UsageError("this user has no home folder to keep the demo model in: set BATCHCAP_CACHE") from None
