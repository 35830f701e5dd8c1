"""Owns the client of huggingface-hub: shut in every process of batchcap, opened here for a download or for addresses.

huggingface-hub is offline in every process of batchcap. Its client gets another hook here: requests may leave, and
carry no numbers or versions to recognise anybody by.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def open_hub(timeout_s: float) -> None:
    """Let huggingface-hub's client out in this process, for addresses that begin with `hf://`; with the user's token.

    Args:
        timeout_s: how long an answer may take.
    """
    _use(_say_little, timeout_s)


@contextmanager
def hub_opened() -> Iterator[None]:
    """Let huggingface-hub's client out for as long as this lasts, without a token; it raises ConnectionError."""
    http_error: Any = sys.modules[_client_type().__module__].HTTPError
    _use(_say_no_more_than_needed)
    try:
        yield
    except http_error as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    finally:
        _use(_refuse)


def _client_type() -> Any:  # noqa: ANN401 - the client has no types here
    from huggingface_hub import get_session  # noqa: PLC0415 - only for names on the hub

    return type(get_session())  # httpx's or its successor's, depending on the version of huggingface-hub


def _use(hook: Callable[[Any], None], timeout_s: float | None = None) -> None:
    from huggingface_hub import set_client_factory  # noqa: PLC0415

    client = _client_type()
    set_client_factory(lambda: client(event_hooks={"request": [hook]}, follow_redirects=True, timeout=timeout_s))


def _say_little(request: Any) -> None:  # noqa: ANN401
    request.headers["user-agent"] = "batchcap"


def _say_no_more_than_needed(request: Any) -> None:  # noqa: ANN401
    _say_little(request)
    for header in ("authorization", "cookie"):
        request.headers.pop(header, None)


def _refuse(request: Any) -> None:  # noqa: ANN401
    from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415

    raise OfflineModeIsEnabled(f"batchcap does not ask the network for {request.url}")
