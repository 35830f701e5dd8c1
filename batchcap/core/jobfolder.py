"""Owns how a job folder is told from other folders: by the name of the folder with its state."""

import os
from pathlib import Path

STATE = "__batchcap"
# Format 2: the parts in a folder of their own, statistics, summary and report beside it.
STATE_2 = "_batchcap"


def is_job_folder(path: Path) -> bool:
    """Whether a folder is one, of any format."""
    return has_folder(path, STATE) or has_folder(path, STATE_2)


def has_folder(path: Path, name: str) -> bool:
    """Whether a folder of that name is in a folder."""
    return os.path.isdir(path / name)  # noqa: PTH112 - Path.is_dir raises for a name that no folder can have
