"""Owns the download of a checkpoint by its name on the Hugging Face hub: no token is sent, and nothing else asked."""

import logging
from pathlib import Path

from batchcap.core.errors import CheckpointError
from batchcap.core.offline import hub_allowed
from batchcap.remote.hub import hub_opened

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")

log = logging.getLogger(__name__)


def fetch(name: str) -> Path:
    """The folder of a checkpoint in the hub's cache on this machine, brought up to date where the hub can be asked.

    Args:
        name: `owner/model`.

    Raises:
        CheckpointError: it is not in the cache, and the hub can't be asked or does not give it.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for names on the hub

    try:
        if not hub_allowed():
            return Path(snapshot_download(name, allow_patterns=list(FILES), local_files_only=True))
        log.info("there is no folder %s: asking the Hugging Face hub for the files of that checkpoint", name)
        with hub_opened():
            return Path(snapshot_download(name, allow_patterns=list(FILES), token=False))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not hub_allowed():
            reason = (
                "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and the checkpoint is not complete in the hub's cache"
            )
        raise CheckpointError(
            f"there is no folder {name}, and it can't be downloaded from the hub ({reason}): download the checkpoint "
            f"on a machine with a network (`hf download {name} --local-dir FOLDER`), copy it here and give its folder"
        ) from None
