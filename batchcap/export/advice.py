"""Owns what is said of a model that is not a bundle: the command that makes one of it, or why none can be made."""

import os
import shlex
from pathlib import Path

from batchcap.core.errors import BundleError, CheckpointError, NoBundleError
from batchcap.export.checkpoint.kinds import EXPORTED, HUB_NAME, holds_a_model, look_at
from batchcap.model.bundle import Bundle

_PRECISION = "int4"  # what `batchcap export` makes where nothing else is asked for


def load_named_bundle(folder: str | Path) -> Bundle:
    """Read a bundle that a person has named; every file is compared with its checksum.

    Raises:
        BundleError: as `Bundle.load`; where there is none, it says how to get one.
    """
    try:
        return Bundle.load(folder)
    except NoBundleError:
        raise BundleError(how_to_get_a_bundle(Path(folder))) from None


def how_to_get_a_bundle(folder: Path) -> str:
    """The error message for a `--model` without a bundle.

    Args:
        folder: what was named: a folder without `bundle.json`, or a name of nothing here, of a model on the hub say.
    """
    if not folder.exists():
        if HUB_NAME.fullmatch(str(folder)) and not folder.parent.exists():
            return (
                f"there is no folder {folder}. If that is a dense Qwen3-VL on the Hugging Face hub, "
                f"{_export(folder, folder.name)}"
            )
        return f"there is no bundle at {folder}; make one with `batchcap export CHECKPOINT --output {_quoted(folder)}`"
    if not holds_a_model(folder):
        return (
            f"{folder} is not a bundle (no bundle.json); make one with `batchcap export CHECKPOINT --output BUNDLE`; "
            f"{EXPORTED}"
        )
    try:
        look_at(folder)
    except (CheckpointError, OSError) as error:
        return f"{folder} is not a bundle, and can't be made into one: {error}"
    return f"{folder} is a checkpoint, not a bundle: {_export(folder, _name(folder))}"


def _export(checkpoint: Path, name: str) -> str:
    bundle = _quoted(_free(f"{name}-{_PRECISION}"))
    return f"run `batchcap export {_quoted(checkpoint)} --output {bundle}` once and pass `--model {bundle}`"


def _name(checkpoint: Path) -> str:
    """What to call a checkpoint; in the hub's cache the folder itself is called by its revision."""
    folder = checkpoint.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name or "model"


def _free(name: str) -> Path:
    """A name in the working folder that nothing has."""
    found, number = Path(name), 2
    while os.path.lexists(found):
        found, number = Path(f"{name}-{number}"), number + 1
    return found


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
