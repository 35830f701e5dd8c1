"""Owns which protocols there are, which package reads each, and how it is set up: no cache, no retries of its own."""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from batchcap.core.address import PROTOCOLS
from batchcap.core.errors import UsageError
from batchcap.core.offline import hub_allowed
from batchcap.remote.hub import open_hub

# An answer that takes longer counts as none. Whole images come in one answer.
TIMEOUT_S = 30
_USER_AGENT = "batchcap"


class Protocol(NamedTuple):
    """How files of one protocol are reached.

    Attributes:
        extra: the extra of batchcap that installs what is needed; None where batchcap needs that package itself.
        open: makes the file system of fsspec.
        credentials: where they are taken from, for messages.
    """

    extra: str | None
    open: Callable[[], Any]
    credentials: str


def _s3() -> Any:  # noqa: ANN401 - fsspec has no types
    from s3fs import S3FileSystem  # noqa: PLC0415 - an extra

    # Attempts are counted in `remote.attempts`, for all protocols alike.
    settings = {"retries": {"mode": "standard", "total_max_attempts": 1}, "user_agent_extra": _USER_AGENT}
    S3FileSystem.retries = 1
    timeouts = {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S}
    return S3FileSystem(
        anon=not _has_credentials(),
        config_kwargs={**settings, **timeouts},
        use_listings_cache=False,
    )


def _has_credentials() -> bool:
    """Whether there are any; public buckets are read without."""
    from botocore.session import Session  # noqa: PLC0415 - as above

    return Session().get_credentials() is not None


def _gs() -> Any:  # noqa: ANN401
    # An experiment of the package asks another service which kind each bucket is, and warns where it gets no answer.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from gcsfs import GCSFileSystem  # noqa: PLC0415 - an extra

    GCSFileSystem.retries = 1
    return GCSFileSystem(use_listings_cache=False, requests_timeout=TIMEOUT_S)


def _http() -> Any:  # noqa: ANN401
    import aiohttp  # noqa: PLC0415 - an extra
    from fsspec.implementations.http import HTTPFileSystem  # noqa: PLC0415 - only for addresses

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    # The environment names proxies, and `~/.netrc` credentials, as for curl.
    client = {"timeout": timeout, "trust_env": True, "headers": {"User-Agent": _USER_AGENT}}
    return HTTPFileSystem(client_kwargs=client, use_listings_cache=False)


def _hf() -> Any:  # noqa: ANN401
    from huggingface_hub import HfFileSystem, get_token  # noqa: PLC0415 - only for addresses

    if not hub_allowed():
        raise UsageError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it to read addresses that begin with hf://"
        )
    open_hub(TIMEOUT_S)
    return HfFileSystem(token=get_token() or False, use_listings_cache=False)


_KNOWN: dict[str, Protocol] = {
    "s3": Protocol("s3", _s3, "the AWS settings (AWS_PROFILE, AWS_ACCESS_KEY_ID, `aws configure`, AWS_ENDPOINT_URL)"),
    "gs": Protocol("gs", _gs, "Google's settings (`gcloud auth application-default login`)"),
    "hf": Protocol(None, _hf, "the hub's token (`hf auth login`, HF_TOKEN)"),
    "https": Protocol("https", _http, "~/.netrc, or in the address itself"),
    "http": Protocol("https", _http, "~/.netrc, or in the address itself"),
}
assert tuple(_KNOWN) == PROTOCOLS  # noqa: S101


def protocol_of(address: str) -> str:
    """The protocol of an address."""
    return address.partition("://")[0].lower()


def credentials_for(address: str) -> str:
    """Where the credentials for an address are taken from."""
    return _KNOWN[protocol_of(address)].credentials


def filesystem(address: str) -> Any:  # noqa: ANN401
    """The file system of an address, as fsspec has it; one for each protocol and process.

    Raises:
        UsageError: a package is missing, or the hub is not to be asked.
    """
    return _filesystem(protocol_of(address), os.getpid())


@lru_cache(len(PROTOCOLS))
def _filesystem(protocol: str, process: int) -> Any:  # noqa: ANN401, ARG001 - connections don't outlive a fork
    known = _KNOWN[protocol]
    try:
        return known.open()
    except ImportError:
        raise UsageError(
            f"addresses that begin with {protocol}:// need another package: install it with "
            f"`pip install 'batchcap[{known.extra}]'`"
        ) from None
