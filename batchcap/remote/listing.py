"""Owns lists of what lies in a folder at an address, page by page: a million names are never held together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from batchcap.core.address import is_web
from batchcap.remote.attempts import attempt
from batchcap.remote.objects import Look, look_of
from batchcap.remote.protocols import filesystem, protocol_of

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing has.

    Attributes:
        name: inside its folder.
        look: at a file; None for a folder.
    """

    name: str
    look: Look | None

    @property
    def key(self) -> bytes:
        """What entries are sorted by, as the paths below them are: a folder's name ends with a slash."""
        return f"{self.name}{'' if self.look else '/'}".encode("utf-8", "surrogatepass")


def listing(address: str) -> Iterator[Entry]:
    """What lies in a folder, in the order of `Entry.key`; nothing where there is none, or of a web server.

    Args:
        address: of the folder, or of a bucket.

    Raises:
        FileNotFoundError: there is no such bucket or repository.
        OSError, NetworkError: as `attempts.attempt`.
    """
    if not is_web(address):
        yield from _LISTINGS[protocol_of(address)](address)


def _list_s3(address: str) -> Iterator[Entry]:
    files = filesystem(address)
    bucket, key, _version = files.split_path(address)
    above = f"{key.rstrip('/')}/" if key else ""
    wanted = {"Bucket": bucket, "Prefix": above, "Delimiter": "/", "MaxKeys": _PAGE}
    while True:
        page = attempt(address, lambda: files.call_s3("list_objects_v2", **wanted), "listed")
        found = [Entry(one["Key"][len(above) :], Look(one["Size"], one["ETag"])) for one in page.get("Contents", ())]
        found += [Entry(one["Prefix"][len(above) :].rstrip("/"), None) for one in page.get("CommonPrefixes", ())]
        yield from _in_order(found)
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
        items = page.get("items", ())
        found = [Entry(one["name"][len(above) :], Look(int(one["size"]), str(one["generation"]))) for one in items]
        found += [Entry(prefix[len(above) :].rstrip("/"), None) for prefix in page.get("prefixes", ())]
        yield from _in_order(found)
        if "nextPageToken" not in page:
            return
        wanted["pageToken"] = page["nextPageToken"]


def _list_hf(address: str) -> Iterator[Entry]:
    """A folder of the hub, which does not say in which order it lists and has not many files in one."""
    files = filesystem(address)
    attempt(address, lambda: files.resolve_path(address), "listed")  # or it says that there is no such repository
    try:
        found = attempt(address, lambda: files.ls(address, detail=True), "listed")
    except FileNotFoundError:
        return
    place = files._strip_protocol(address).rstrip("/")  # noqa: SLF001 - what every file system has
    names = (str(info["name"]).removeprefix(place) for info in found)
    looks = (None if info["type"] == "directory" else look_of(info) for info in found)
    pairs = zip(names, looks, strict=True)
    yield from _in_order([Entry(name.strip("/"), one) for name, one in pairs if name.startswith("/")])


def _in_order(page: list[Entry]) -> Iterator[Entry]:
    """The entries of a page; the pages of a store follow each other in the same order."""
    # An empty object may stand for the folder itself.
    return iter(sorted((entry for entry in page if entry.name), key=lambda entry: entry.key))


_LISTINGS = {"s3": _list_s3, "gs": _list_gs, "hf": _list_hf}
