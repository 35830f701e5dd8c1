"""What many tests need and none changes: made once a run, by the process that comes first, and read by all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from batchcap.export.checkpoint.options import ExportOptions
    from batchcap.model.bundle import Bundle


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run; the processes of one run (pytest-xdist) have the same."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own there, below that of the run
        base = base.parent
    folder = base / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(place: Path, make: Callable[[Path], object]) -> Path:
    """`place`, after `make` has filled it: whole or not there, and only once."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            unfinished = place.with_name(f"{place.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # what a process that failed has left
            make(unfinished)
            unfinished.rename(place)
    return place


def shared_bundle(factory: pytest.TempPathFactory, name: str, checkpoint: Path, options: "ExportOptions") -> "Bundle":
    """The bundle of a checkpoint that all processes of the run read."""
    from batchcap.export.export import export_bundle  # noqa: PLC0415 - seconds, and not for every test
    from batchcap.model.bundle import Bundle  # noqa: PLC0415

    def export(folder: Path) -> None:
        export_bundle(str(checkpoint), folder, options)

    return Bundle.load(made_once(shared_folder(factory) / "bundle" / name, export), verify=False)


def linked_copy(folder: Path, copy: Path) -> Path:
    """The same files in another folder, for who adds some or takes some away; none may be written into."""
    return Path(shutil.copytree(folder, copy, copy_function=os.link))
