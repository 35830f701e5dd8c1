"""Owns what becomes of requests that fail: which are made again, how long to wait, and what a person is told.

Waits double (exponential back-off), are drawn a little apart so that many readers do not come back together, and are
as long as a server asks for (`Retry-After`).
"""

import errno
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, TypeVar

from batchcap.core.address import host_of, without_query
from batchcap.core.errors import BatchcapError, ExitCode
from batchcap.core.text import one_line
from batchcap.remote.protocols import credentials_for

log = logging.getLogger(__name__)

Result = TypeVar("Result")

NOTHING_THERE = "there is nothing at this address"
ATTEMPTS = 6
# At a server that has not answered in all of them, until it does: a list of links may have thousands of a dead one.
ATTEMPTS_AT_SILENT = 2
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 15.0
_SHOWN_LETTERS = 200
_QUERY = re.compile(r"\?[^\s'\"<>]+")  # of a web address; it may hold a secret
_DENIED = frozenset({401, 403, 407})
_MISSING = frozenset({404, 410})
_CHANGED = 412  # of a request that asks for one version only
_NOTHING_THERE = 416  # no such range
_TRANSIENT = frozenset({408, 425, 429})
_SERVER_ERRORS = 500
# Error codes of S3 for what has a status of 400, and classes of the packages for what is found out before a request.
_DENIED_WORDS = (
    *("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentials"),
    *("PartialCredentials", "DefaultCredentialsError", "RefreshError", "ProfileNotFound"),
)


_silent: set[str] = set()
_MAX_SILENT = 10_000


class NetworkError(BatchcapError):
    """Something at an address can't be had now, after several attempts: the same command goes on later."""

    exit_code = ExitCode.STOPPED_EARLY


class ChangedError(OSError):
    """What is at an address is not what was looked at."""


class _Problem(Enum):
    MISSING = auto()
    DENIED = auto()
    CHANGED = auto()
    TRANSIENT = auto()
    REFUSED = auto()


def attempt(address: str, request: Callable[[], Result]) -> Result:
    """What a request gives; made again where it fails for a reason that may pass.

    Args:
        address: what is asked for, for messages.
        request: makes it; may be called again after any error.

    Raises:
        FileNotFoundError: there is nothing at the address.
        PermissionError: credentials are missing or wrong.
        ChangedError: it is not the version that was asked for.
        OSError: it is refused for another reason.
        NetworkError: it failed each time.
    """
    host = host_of(address)
    attempts = ATTEMPTS_AT_SILENT if host in _silent else ATTEMPTS
    for wait_s in (*_waits_s(attempts), None):
        try:
            result = request()
        except BatchcapError:
            raise
        except Exception as error:
            problem = _problem_of(error)
            if problem is not _Problem.TRANSIENT:
                _silent.discard(host)
                raise _as_os_error(address, problem, error) from error
            if wait_s is None:
                _remember_silent(host)
                raise NetworkError(
                    f"{_shown(address)} could not be had in {attempts} attempts ({_reason(error)}): check the network "
                    f"and whether {host} can be reached, then run the same command again"
                ) from error
            long_s = max(wait_s, _asked_for_s(error))
            log.debug("%s: %s; again in %.1f s", _shown(address), _reason(error), long_s)
            time.sleep(long_s)
        else:
            _silent.discard(host)
            return result
    raise AssertionError  # the last attempt returns or raises


def _remember_silent(host: str) -> None:
    if len(_silent) >= _MAX_SILENT:
        _silent.clear()
    _silent.add(host)


def _waits_s(attempts: int) -> Iterator[float]:
    for number in range(attempts - 1):
        yield min(MAX_WAIT_S, FIRST_WAIT_S * 2**number) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret


def _asked_for_s(error: BaseException) -> float:
    """How long a server has asked to wait."""
    for one in _chain(error):
        try:
            return min(MAX_WAIT_S, float(one.headers["Retry-After"]))  # type: ignore[attr-defined]
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return 0.0


def _problem_of(error: BaseException) -> _Problem:
    status = status_of(error)
    said = " ".join(f"{type(one).__name__} {one}" for one in _chain(error))
    if status in _DENIED or any(word in said for word in _DENIED_WORDS):
        return _Problem.DENIED
    if status == _CHANGED or isinstance(error, ChangedError):
        return _Problem.CHANGED
    if status in _MISSING or isinstance(error, FileNotFoundError):
        return _Problem.MISSING
    if status is None or status in _TRANSIENT or status >= _SERVER_ERRORS:
        if isinstance(error, PermissionError):
            return _Problem.DENIED
        return _Problem.TRANSIENT if _is_of_network(error, status) else _Problem.REFUSED
    return _Problem.REFUSED


def _is_of_network(error: BaseException, status: int | None) -> bool:
    """Whether an error is of the connection or the server, and not one of ours."""
    if status is not None:
        return True
    packages = ("aiohttp", "aiobotocore", "botocore", "urllib3", "httpx", "httpcore", "google", "gcsfs", "requests")
    return any(
        isinstance(one, OSError | TimeoutError | EOFError) or type(one).__module__.startswith(packages)
        for one in _chain(error)
    )


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of one of the packages stands for; None where there is none."""
    for one in _chain(error):
        if type(one).__module__ == "aiohttp.http_exceptions":  # what is wrong with an answer, as if it were a request
            continue
        answer: Any = getattr(one, "response", None)
        if isinstance(answer, dict):
            found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(answer, "status_code", None) or getattr(one, "status", None) or getattr(one, "code", None)
        if isinstance(found, int):
            return found
    return None


def is_past_the_end(error: BaseException) -> bool:
    """Whether a server says that it has no byte of the range that was asked for."""
    return status_of(error) == _NOTHING_THERE


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = set[int]()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _as_os_error(address: str, problem: _Problem, error: Exception) -> OSError:
    shown = _shown(address)
    match problem:
        case _Problem.MISSING:
            return FileNotFoundError(errno.ENOENT, NOTHING_THERE, shown)
        case _Problem.DENIED:
            advice = f"credentials are missing or wrong; they are taken from {credentials_for(address)}"
            return PermissionError(errno.EACCES, f"access is denied ({_reason(error)}): {advice}", shown)
        case _Problem.CHANGED:
            reason = "it has changed since it was looked at: run the same command again"
            return ChangedError(errno.ESTALE, reason, shown)
        case _:
            return OSError(errno.EIO, f"the server refuses it ({_reason(error)})", shown)


def _reason(error: BaseException) -> str:
    text = one_line(str(error).splitlines()[0]) if str(error) else ""
    text = _QUERY.sub("?…", text)
    name = type(error).__name__
    return f"{name}: {text[:_SHOWN_LETTERS]}" if text else name


def _shown(address: str) -> str:
    return one_line(without_query(address))[:_SHOWN_LETTERS]
