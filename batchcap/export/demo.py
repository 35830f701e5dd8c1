"""Owns which bundle a job loads: the one named, or the embedded demo model, exported once and kept."""

import logging
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path

from filelock import FileLock

from batchcap.config import DEMO_MODEL, MODEL_VARIABLE
from batchcap.core.cache import cache_folder
from batchcap.core.errors import BundleError, UsageError
from batchcap.export.advice import load_named_bundle
from batchcap.export.checkpoint.options import ExportOptions, missing_packages
from batchcap.model.bundle import BUNDLE_FILE, Bundle

log = logging.getLogger(__name__)

NO_MODEL = (
    "no model is named: give --model BUNDLE, which `batchcap export CHECKPOINT --output BUNDLE` makes once from a "
    f'Qwen3-VL checkpoint (in a job file model = "BUNDLE", in the environment {MODEL_VARIABLE}). --model {DEMO_MODEL} '
    "is the embedded model, which knows drawn scenes only; a job that was begun without --model goes on with it"
)
DEMO_NOTE = "the demo model knows drawn scenes of a few everyday things, and nothing else"


def demo_checkpoint() -> Path:
    """Folder of the embedded demo checkpoint (Hugging Face layout)."""
    return Path(str(resources.files("batchcap"))) / "demo" / "checkpoint"


def load_model(model: str | None) -> Bundle:
    """The bundle at `model`, every file checked against its sum; `DEMO_MODEL` is the embedded model.

    Raises:
        BundleError: the folder is not a whole bundle.
        UsageError: no model is named, or there is no place to keep the demo model in.
    """
    if model is None:
        raise UsageError(NO_MODEL)
    if model != DEMO_MODEL:
        return load_named_bundle(model)
    log.info(DEMO_NOTE)
    if (Path(DEMO_MODEL) / BUNDLE_FILE).exists():
        log.warning(
            "--model %s is the embedded model; the bundle in the folder is --model ./%s", DEMO_MODEL, DEMO_MODEL
        )
    return replace(demo_bundle(), source=DEMO_MODEL)


def demo_bundle() -> Bundle:
    """The embedded demo model as a bundle; exported at the first use, which takes about ten seconds.

    Raises:
        UsageError: there is no place to keep it in.
    """
    # The key covers what decides the bundle's bytes, so a new release never meets an old bundle.
    missing = missing_packages()
    if missing:
        raise UsageError(
            f"the demo model is exported at its first use, and {missing} is not installed here: pass --model BUNDLE, "
            "made by `batchcap export` on a machine that has it"
        )
    from batchcap.export.export import export_bundle, export_key  # noqa: PLC0415 - only needed at first use

    options = ExportOptions()
    folder = cache_folder() / f"demo-{export_key(demo_checkpoint(), options)[:16]}"
    with suppress(BundleError):  # without the lock: the folder may be one that is only read
        return Bundle.load(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder) + ".lock")
        held = lock.acquire()
    except OSError as error:
        raise UsageError(
            f"can't keep the demo model in {folder.parent} ({error.strerror}): set BATCHCAP_CACHE to a folder that can "
            "be written"
        ) from None
    with held:
        try:
            return Bundle.load(folder)  # another run may have made it meanwhile
        except BundleError:
            log.info("exporting the demo model to %s", folder)
            return export_bundle(str(demo_checkpoint()), folder, options, overwrite=True)
