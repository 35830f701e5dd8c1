"""Owns objects that are put at addresses: each appears whole or not at all, and only in the place of what was seen."""

import mimetypes
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchcap.core.address import file_name
from batchcap.remote.attempts import ChangedError, attempt, status_of
from batchcap.remote.objects import look
from batchcap.remote.protocols import filesystem, protocol_of

# What is larger is put in parts of this size, each attempted by itself. S3 takes 10,000 of them at most.
PART_BYTES = 8 << 20
_MAX_PARTS = 10_000
_NOT_IMPLEMENTED = 501
_WRITTEN = "written"
_HUB_BUCKETS = "hf://buckets/"


@dataclass(frozen=True, slots=True)
class Put:
    """An object that is to be.

    Attributes:
        address: where.
        content: its bytes, or the file of this machine that has them.
        before: version of what was seen there, which is replaced; None: nothing was there.
    """

    address: str
    content: bytes | Path
    before: str | None

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def whole(self) -> bytes:
        """All of its bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def goes_together(address: str) -> bool:
    """Whether many objects are put with one request, by `put_together`."""
    return protocol_of(address) == "hf" and not address.startswith(_HUB_BUCKETS)


def put(one: Put) -> str:
    """Put an object; also called from several threads at once.

    Returns:
        Its version, as `Look` has it.

    Raises:
        ChangedError: something else is there than was seen; also where an earlier attempt of this call has put it.
            Stores that can't compare put it nevertheless.
        OSError, NetworkError: as `attempts.attempt`.
    """
    return _PUTS[protocol_of(one.address)](one)


def put_together(several: Sequence[Put]) -> list[str]:
    """Put objects of one repository of the hub, in one commit: all of them or none. Returns and raises as `put`."""
    from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - only for addresses

    operations = {}
    for one in several:
        content = str(one.content) if isinstance(one.content, Path) else one.content
        path = _resolved(one.address).path_in_repo
        operations[path] = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
    address = several[0].address
    _commit(address, list(operations.values()), f"Add {len(several)} files with batchcap")
    return [look(one.address).version for one in several]


def remove(addresses: Sequence[str]) -> None:
    """Remove objects; those that are gone already are no error. Raises as `attempts.attempt`."""
    if addresses and goes_together(addresses[0]):
        from huggingface_hub import CommitOperationDelete  # noqa: PLC0415

        operations = [CommitOperationDelete(path_in_repo=_resolved(one).path_in_repo) for one in addresses]
        _commit(addresses[0], operations, f"Remove {len(addresses)} files with batchcap")
        return
    for address in addresses:
        with suppress(FileNotFoundError):
            attempt(address, lambda one=address: filesystem(one).rm_file(one), "removed")  # type: ignore[misc]


def require_allowed(address: str) -> None:
    """Find out whether objects may be put below an address, without putting one; where that can't be, say nothing.

    Raises:
        OSError, NetworkError: they may not; as `attempts.attempt`.
    """
    if protocol_of(address) != "s3":
        return
    files = filesystem(address)
    bucket, key, _version = files.split_path(address)
    # Who may begin an upload may put an object. One that is not ended never becomes one.
    place = {"Bucket": bucket, "Key": key or ".batchcap"}

    def request() -> Any:  # noqa: ANN401 - what the client answers
        try:
            return files.call_s3("create_multipart_upload", **place)
        except Exception as error:
            if status_of(error) == _NOT_IMPLEMENTED:
                return None
            raise

    begun = attempt(address, request, _WRITTEN)
    if begun is not None:
        _abort(files, place, begun["UploadId"])


def _put_s3(one: Put) -> str:
    files = filesystem(one.address)
    bucket, key, _version = files.split_path(one.address)
    place = {"Bucket": bucket, "Key": key}
    condition = {"IfNoneMatch": "*"} if one.before is None else {"IfMatch": one.before} if one.before else {}
    size = one.size_bytes
    if size > PART_BYTES and isinstance(one.content, Path):
        return _put_in_parts(files, place, one.content, condition)
    kind = _content_type(one.address)
    body = one.whole()

    def request(condition: Mapping[str, str]) -> Any:  # noqa: ANN401 - what the client answers
        return files.call_s3("put_object", **place, **kind, Body=body, **condition)

    return str(attempt(one.address, lambda: _conditional(request, condition), _WRITTEN)["ETag"])


def _put_in_parts(files: Any, place: Mapping[str, str], path: Path, condition: Mapping[str, str]) -> str:  # noqa: ANN401
    address = f"s3://{place['Bucket']}/{place['Key']}"
    kind = _content_type(address)
    begun = attempt(address, lambda: files.call_s3("create_multipart_upload", **place, **kind), _WRITTEN)
    upload = {**place, "UploadId": begun["UploadId"]}
    part_bytes = max(PART_BYTES, -(-path.stat().st_size // _MAX_PARTS))
    try:
        parts = list[dict[str, object]]()
        with path.open("rb") as file:
            while body := file.read(part_bytes):
                part = {**upload, "PartNumber": len(parts) + 1, "Body": body}
                done = attempt(address, lambda part=part: files.call_s3("upload_part", **part), _WRITTEN)  # type: ignore[misc]
                parts.append({"PartNumber": part["PartNumber"], "ETag": done["ETag"]})

        def request(condition: Mapping[str, str]) -> Any:  # noqa: ANN401
            parts_of = {"MultipartUpload": {"Parts": parts}}
            return files.call_s3("complete_multipart_upload", **upload, **parts_of, **condition)

        try:
            return str(attempt(address, lambda: _conditional(request, condition), _WRITTEN)["ETag"])
        except FileNotFoundError as error:  # an attempt whose answer was lost has ended the upload
            raise ChangedError(str(error)) from error
    except BaseException:
        _abort(files, place, begun["UploadId"])
        raise


def _abort(files: Any, place: Mapping[str, str], upload: str) -> None:  # noqa: ANN401
    """Give up the parts that are there: a store keeps them else, and lets them be paid for."""
    with suppress(Exception):
        files.call_s3("abort_multipart_upload", **place, UploadId=upload)


def _conditional(request: Callable[[Mapping[str, str]], Any], condition: Mapping[str, str]) -> Any:  # noqa: ANN401
    """A request with a condition; without it where a store has none."""
    try:
        return request(condition)
    except Exception as error:
        if not condition or status_of(error) != _NOT_IMPLEMENTED:
            raise
        return request({})


def _content_type(address: str) -> dict[str, str]:
    kind, _encoding = mimetypes.guess_type(file_name(address))
    return {"ContentType": kind} if kind else {}


def _put_gs(one: Put) -> str:
    files = filesystem(one.address)
    mode = "create" if one.before is None else "overwrite"
    content = one.content

    def request() -> None:
        try:
            if isinstance(content, bytes):
                files.pipe_file(one.address, content, mode=mode)
            else:
                files.put_file(str(content), one.address, mode=mode)
        except FileExistsError as error:
            raise ChangedError(str(error)) from error

    attempt(one.address, request, _WRITTEN)
    return look(one.address).version


def _put_hf(one: Put) -> str:
    """Into a bucket of the hub, which has no commits and no conditions."""
    content, files = one.content, filesystem(one.address)
    if isinstance(content, bytes):
        attempt(one.address, lambda: files.pipe_file(one.address, content), _WRITTEN)
    else:
        attempt(one.address, lambda: files.put_file(str(content), one.address), _WRITTEN)
    files.invalidate_cache()
    return look(one.address).version


_PUTS = {"s3": _put_s3, "gs": _put_gs, "hf": _put_hf}


def _resolved(address: str) -> Any:  # noqa: ANN401 - huggingface-hub has no name for it that stays
    return filesystem(address).resolve_path(address)


def _commit(address: str, operations: Sequence[Any], message: str) -> None:
    from huggingface_hub import HfApi  # noqa: PLC0415

    files, where = filesystem(address), _resolved(address)
    known = {"repo_type": where.repo_type, "revision": where.revision, "commit_message": message}
    api = HfApi(endpoint=files.endpoint, token=files.token)
    attempt(address, lambda: api.create_commit(where.repo_id, operations=list(operations), **known), _WRITTEN)
    files.invalidate_cache()
