"""Owns raw access to safetensors: tensors are copied as bytes, so nothing is rounded and memory stays small.

Format: 8 bytes little-endian header length, a JSON header with dtype, shape and byte range of every tensor, then the
bytes (github.com/huggingface/safetensors, README, "Format").
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from batchcap.core.errors import CheckpointError
from batchcap.core.records import Float32Array
from batchcap.model.stored_json import LFS_POINTER, LFS_REMEDY, read_json

_COPY_BYTES = 1 << 24
_MAX_HEADER_BYTES = 100_000_000
# bfloat16 has no numpy type: its bits are kept in 16-bit integers.
_NUMPY_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
FLOAT_TYPES = frozenset(_NUMPY_TYPES)
VISION = "visual."
EMBEDDINGS = "language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
WHOLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER = "adapter_model"  # what the files of an adapter are called
_SHARD = re.compile(r"(?P<stem>.+)-\d+-of-(?P<count>\d+)\.safetensors")
# The first that fits: transformers 4 and 5, whole models and language models alone.
_NAME_HEADS = (
    ("model.language_model.", "language_model."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", VISION),
    ("model.", "language_model."),
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's place in a file; `start` counts from the beginning of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows `start` to `stop` along the first axis, as float32, which is exact; read from the file, not mapped.

        Raises:
            CheckpointError: the tensor is not floating point, or the file got shorter.
        """
        dtype = np.dtype(_NUMPY_TYPES[self.dtype])
        row_values = math.prod(self.shape[1:])
        count = (stop - start) * row_values
        values = np.fromfile(self.path, dtype, count, offset=self.start + start * row_values * dtype.itemsize)
        if len(values) != count:
            raise CheckpointError(f"{self.path} got shorter while it was read: copy the checkpoint again")
        wide = (values.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else values
        return wide.astype(np.float32, copy=False).reshape(-1, *self.shape[1:])


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by its canonical name, from all of its weight files.

    Raises:
        CheckpointError: weights are missing, cut short, stored twice, or not safetensors.
    """
    return {canonical_name(name): tensor for name, tensor in stored_tensors(folder).items()}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by its name in the file.

    Raises:
        CheckpointError: as `read_index`.
    """
    tensors: dict[str, StoredTensor] = {}
    indexed = (folder / INDEX_FILE).exists()
    for path in weight_files(folder):
        found = read_file(path)
        twice = sorted(tensors.keys() & found.keys())
        if twice and not indexed:
            raise CheckpointError(
                f"{tensors[twice[0]].path.name} and {path.name} in {folder} both hold {twice[0]}, and no {INDEX_FILE} "
                "says which counts: leave only the files of one copy there"
            )
        tensors |= found
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, sorted by name; one whole file comes before shards, as in transformers.

    Without an index the shards are those whose names count them, or all files of safetensors but an adapter's.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    index = folder / INDEX_FILE
    if (folder / WHOLE_FILE).exists():
        names = [WHOLE_FILE]
    elif index.exists():
        names = _indexed(index)
    else:
        names = _unindexed(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more of its {len(names)} weight files are" if len(missing) > 1 else " is"
        raise CheckpointError(f"{folder / missing[0]}{more} missing: copy the checkpoint's weights again")
    return [folder / name for name in names]


def _indexed(index: Path) -> list[str]:
    try:
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"can't read {index} ({error}): copy the checkpoint again") from None
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]}, which is outside {index.parent}: copy the checkpoint again")
    return names


def _unindexed(folder: Path) -> list[str]:
    """The files that make up a checkpoint without an index."""
    names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith(ADAPTER))
    counted = [found for found in map(_SHARD.fullmatch, names) if found]
    if not counted:
        return names or [WHOLE_FILE]  # which is then missing
    kinds = {(found["stem"], found["count"]) for found in counted}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{folder} holds the shards of several models ({counted[0][0]}, {counted[-1][0]}, …) and no {INDEX_FILE}: "
            "leave only those of one there"
        )
    stem, count = kinds.pop()
    return [f"{stem}-{number:0{len(count)}}-of-{count}.safetensors" for number in range(1, int(count) + 1)]


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, by its name there.

    Raises:
        CheckpointError: it can't be read, was cut short, or is not safetensors.
    """
    try:
        return _parse_header(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}): copy the checkpoint again"
        ) from None


def _parse_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(f"{path} {LFS_REMEDY}")
        file.seek(0)
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size, _MAX_HEADER_BYTES):
            raise ValueError(f"its header would have {length} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = map(int, entry["data_offsets"])
        first = 8 + length + start
        if not 0 <= start <= end:
            raise ValueError(f"it says that {name} lies from {start} to {end}")
        if first + end - start > size:
            raise ValueError(f"it ends inside the tensor {name}")
        tensors[name] = StoredTensor(path, entry["dtype"], tuple(map(int, entry["shape"])), first, end - start)
    return tensors


def _copy(tensor: StoredTensor, target: BinaryIO) -> None:
    with tensor.path.open("rb") as source:
        source.seek(tensor.start)
        left = tensor.nbytes
        while left:
            block = source.read(min(left, _COPY_BYTES))
            if not block:
                raise CheckpointError(f"{tensor.path} got shorter while it was read: copy the checkpoint again")
            target.write(block)
            left -= len(block)


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are the same to the last bit, type and shape included."""
    if (one.dtype, one.shape, one.nbytes) != (other.dtype, other.shape, other.nbytes):
        return False
    with one.path.open("rb") as ours, other.path.open("rb") as theirs:
        ours.seek(one.start)
        theirs.seek(other.start)
        left = one.nbytes
        while left:
            count = min(left, _COPY_BYTES)
            if ours.read(count) != theirs.read(count):
                return False
            left -= count
    return True


def write_safetensors(path: Path, tensors: Iterable[tuple[str, StoredTensor]]) -> None:
    """Write tensors under new names into one file, in the order given, as they are."""
    chosen = list(tensors)
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in chosen:
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _name, tensor in chosen:
            _copy(tensor, file)


def write_npy(path: Path, tensor: StoredTensor) -> None:
    """Write a tensor as .npy; bfloat16 as the 16-bit integers of its bits.

    Raises:
        CheckpointError: the tensor is not floating point.
    """
    if tensor.dtype not in _NUMPY_TYPES:
        raise CheckpointError(f"the token embeddings are {tensor.dtype}; only F32, F16 and BF16 can be exported")
    header = {"descr": _NUMPY_TYPES[tensor.dtype], "fortran_order": False, "shape": tensor.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        _copy(tensor, file)


def canonical_name(name: str) -> str:
    """A tensor's name whatever version of transformers wrote it: `visual.…`, `language_model.…` or `lm_head.weight`."""
    for head, instead in _NAME_HEADS:
        if name.startswith(head):
            return instead + name.removeprefix(head)
    return name


def vision_tensors(tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """The vision tower's tensors, sorted, their names without `visual.`."""
    for name in sorted(tensors):
        if name.startswith(VISION):
            yield name.removeprefix(VISION), tensors[name]


def embedding_tensor(tensors: dict[str, StoredTensor]) -> StoredTensor:
    """The token embeddings.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    if EMBEDDINGS not in tensors:
        raise CheckpointError(f"the checkpoint has no token embeddings (model.{EMBEDDINGS})")
    return tensors[EMBEDDINGS]
