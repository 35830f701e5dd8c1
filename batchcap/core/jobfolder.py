"""Owns how folders of batchcap are told from others: job folders by the folder of their state, datasets by a mark."""

import os
from pathlib import Path

STATE = "__batchcap"
# Format 2: the parts in a folder of their own, statistics, summary and report beside it.
STATE_2 = "_batchcap"
# In a folder of captions with their images that batchcap has written. Hidden: what reads such folders skips it.
DATASET_MARK = ".batchcap-dataset"


def is_job_folder(path: Path) -> bool:
    """Whether a folder is one, of any format."""
    return has_folder(path, STATE) or has_folder(path, STATE_2)


def has_folder(path: Path, name: str) -> bool:
    """Whether a folder of that name is in a folder."""
    return os.path.isdir(path / name)  # noqa: PTH112 - Path.is_dir raises for a name that no folder can have


def is_own_dataset(path: Path) -> bool:
    """Whether batchcap has written a folder: the images in it are those of its inputs once more."""
    return os.path.lexists(path / DATASET_MARK)
