"""Owns lists of what lies in a folder at an address, page by page: a million names are never held together."""

from collections.abc import Iterator
from typing import Any

from batchcap.remote.attempts import attempt
from batchcap.remote.objects import Entry, Look, entries
from batchcap.remote.protocols import filesystem, protocol_of

_PAGE = 1000


def listing(address: str) -> Iterator[Entry]:
    """What lies in a folder, in no order; nothing where there is none.

    Args:
        address: of the folder, or of a bucket.

    Raises:
        FileNotFoundError: there is no such bucket or repository.
        OSError, NetworkError: as `attempts.attempt`.
    """
    yield from _LISTINGS[protocol_of(address)](address)


def _list_s3(address: str) -> Iterator[Entry]:
    files = filesystem(address)
    bucket, key, _version = files.split_path(address)
    above = f"{key.rstrip('/')}/" if key else ""
    wanted = {"Bucket": bucket, "Prefix": above, "Delimiter": "/", "MaxKeys": _PAGE}
    while True:
        page = attempt(address, lambda: files.call_s3("list_objects_v2", **wanted), "listed")
        for one in page.get("Contents", ()):
            if name := one["Key"][len(above) :]:  # else an empty object that stands for the folder
                yield Entry(name, Look(one["Size"], one["ETag"]))
        for one in page.get("CommonPrefixes", ()):
            yield Entry(one["Prefix"][len(above) :].rstrip("/"), None)
        if not page.get("IsTruncated"):
            return
        wanted["ContinuationToken"] = page["NextContinuationToken"]


def _list_gs(address: str) -> Iterator[Entry]:
    files = filesystem(address)
    bucket, key, _generation = files.split_path(address)
    above = f"{key.rstrip('/')}/" if key else ""
    wanted: dict[str, Any] = {"prefix": above, "delimiter": "/", "maxResults": _PAGE}
    while True:
        page = attempt(address, lambda: files.call("GET", "b/{}/o", bucket, json_out=True, **wanted), "listed")
        for one in page.get("items", ()):
            if name := one["name"][len(above) :]:
                yield Entry(name, Look(int(one["size"]), str(one["generation"])))
        for prefix in page.get("prefixes", ()):
            yield Entry(prefix[len(above) :].rstrip("/"), None)
        if "nextPageToken" not in page:
            return
        wanted["pageToken"] = page["nextPageToken"]


def _list_hf(address: str) -> Iterator[Entry]:
    files = filesystem(address)
    attempt(address, lambda: files.resolve_path(address), "listed")  # or it says that there is no such repository
    yield from entries(address)


_LISTINGS = {"s3": _list_s3, "gs": _list_gs, "hf": _list_hf}
