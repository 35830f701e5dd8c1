"""Owns the one place that asks the network: a checkpoint by its name on the Hugging Face hub, and nothing else.

huggingface-hub is offline in every process of batchcap. Here its client gets another hook: requests may leave as long
as one download lasts, and they carry no token and no numbers or versions to recognise anybody by.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchcap.core.errors import CheckpointError
from batchcap.core.offline import hub_allowed

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
        with _open_hub():
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


@contextmanager
def _open_hub() -> Iterator[None]:
    """Let huggingface-hub's client out for as long as this lasts; its errors are raised as ConnectionError."""
    from huggingface_hub import get_session, set_client_factory  # noqa: PLC0415

    client: Any = type(get_session())  # httpx's or its successor's, depending on the version of huggingface-hub
    http_error: Any = sys.modules[client.__module__].HTTPError

    def use(hook: Any) -> None:  # noqa: ANN401 - the client has no types here
        set_client_factory(lambda: client(event_hooks={"request": [hook]}, follow_redirects=True, timeout=None))

    use(_say_no_more_than_needed)
    try:
        yield
    except http_error as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    finally:
        use(_refuse)


def _say_no_more_than_needed(request: Any) -> None:  # noqa: ANN401
    request.headers["user-agent"] = "batchcap"
    for header in ("authorization", "cookie"):
        request.headers.pop(header, None)


def _refuse(request: Any) -> None:  # noqa: ANN401
    from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415

    raise OfflineModeIsEnabled(f"batchcap does not ask the network for {request.url}")
