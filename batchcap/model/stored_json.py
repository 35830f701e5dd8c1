"""Owns the reading of a checkpoint's JSON files, and the fault of a file that Git LFS has not fetched."""

import json
from pathlib import Path
from typing import Any

from batchcap.core.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs"
LFS_REMEDY = "is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone, or download the file"


def read_json(path: Path) -> dict[str, Any]:
    """The object in one of a checkpoint's files.

    Raises:
        CheckpointError: it is missing, can't be read, or holds something else.
    """
    try:
        text = path.read_bytes()
        if text.startswith(LFS_POINTER):
            raise CheckpointError(f"{path} {LFS_REMEDY}")
        content = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(_missing(path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"can't read {path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def _missing(path: Path) -> str:
    """Where a file is, if a person is likely to have meant another folder; else where to get it."""
    folder = path.parent
    inside = sorted((*folder.glob(f"*/{path.name}"), *folder.glob(f"snapshots/*/{path.name}")))
    if inside:
        return f"{path} is missing; there is one in {inside[-1].parent}: give that folder"
    return (
        f"{path} is missing: {folder} is not a complete checkpoint. Copy the file from where the checkpoint is from, "
        "or, after training, from the model that was trained"
    )
