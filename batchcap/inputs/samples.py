"""Owns the index of an archive: its members become samples, one row each, with where every member of a sample lies.

WebDataset's rule is used where it is meant: members are one sample by their key only in an archive in which some text,
JSON or class lies beside an image. Elsewhere every image is a sample of its own, and its key is its whole path.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from batchcap.core.errors import ErrorKind
from batchcap.core.text import one_line
from batchcap.inputs.members import (
    CLASS,
    SIDECARS,
    Damage,
    Member,
    RowFault,
    is_image,
    is_passed_over,
    key_and_extension,
)

_BATCH_SAMPLES = 8192
READ_SAMPLES = 1024
# What the schema of an index says of the whole archive.
GROUPED, COLUMNS, NUMBERS = b"grouped", b"columns", b"class numbers"
_NUMBER = re.compile(rb"[+-]?[0-9]{1,18}")
_DOUBLED = re.compile(r"(.*)#[0-9]+", re.DOTALL)
_TEXT_OF_FAULT = ":"


class StoredMember(NamedTuple):
    """A member as an index has it; its values are those of `Member`.

    Attributes:
        extension: what it is in its sample.
        fault: see `fault_of`.
    """

    extension: str
    fault: str | None
    offset: int
    size: int
    packed: int = 0
    method: int = 0
    crc: int = 0


class Sample(NamedTuple):
    """A row of an archive.

    Attributes:
        key: its name there, which no other sample has.
        failure: why all of it can't be had; see `fault_of`.
        members: the images and sidecars, in the archive's order.
    """

    key: str
    failure: str | None
    members: list[StoredMember]


class IsGroupedError(Exception):
    """An archive that was taken for a plain one has samples of several members."""


def is_number(content: bytes | None) -> bool:
    """Whether the content of a class is a whole number."""
    return content is not None and _NUMBER.fullmatch(content.strip()) is not None


def stored_fault(fault: RowFault | None) -> str | None:
    """A fault as an index has it."""
    return None if fault is None else f"{fault[0]}{_TEXT_OF_FAULT}{fault[1]}"


def fault_of(stored: str) -> RowFault:
    """A fault that an index has."""
    kind, _colon, reason = stored.partition(_TEXT_OF_FAULT)
    return ErrorKind(kind), reason


class Pairing:
    """Looks for an image and a sidecar of one key among those that come one after the other."""

    def __init__(self) -> None:
        self._key = ""
        self._has = [False, False]

    def ends_with(self, key: str, extension: str) -> bool:
        """Whether a member makes a pair with one before it."""
        if key != self._key:
            self._key, self._has = key, [False, False]
        self._has[extension in SIDECARS] = True
        return all(self._has)


class IndexBuilder:
    """Makes the index of an archive of its members, in their order.

    Args:
        fields: those of `Member` that the index keeps beside offset and size; whole numbers.
        is_grouped: whether members with one key are one sample.
        with_raws: whether camera raw files are images.
    """

    def __init__(self, fields: Sequence[str], *, is_grouped: bool, with_raws: bool = True) -> None:
        self._fields = ("offset", "size", *fields)
        self._with_raws = with_raws
        self._is_grouped = is_grouped
        self._pairing = Pairing()
        self._key: str | None = None  # of the open sample
        self._open: dict[str, Member] = {}  # its members by their extension
        self._faults: dict[str, RowFault] = {}  # what is wrong with them, if it is more than their own fault
        self._columns: set[str] = set()
        self._has_numbers_only = True
        self._batches: list[pa.RecordBatch] = []
        self._hashes = array("q")  # of all keys
        self._clear()

    def build(self, members: Iterable[Member | Damage]) -> pa.Table:
        """The index.

        Raises:
            IsGroupedError: the archive is not a plain one.
        """
        for member in members:
            if isinstance(member, Damage):
                self._add_damage(member)
            elif not is_passed_over(member.name):
                self._add(member)
        self._close()
        self._flush()
        table = pa.Table.from_batches(self._batches, self._schema())
        about = {
            GROUPED: b"1" if self._is_grouped else b"",
            COLUMNS: " ".join(name for name in SIDECARS if name in self._columns).encode(),
            NUMBERS: b"1" if self._has_numbers_only else b"",
        }
        # Only where two are equal may two keys be: to look for these takes as much memory as all keys do.
        if len(np.unique(np.array(self._hashes))) < len(table):
            table = _with_unique_keys(table)
        return table.replace_schema_metadata(about)

    def _clear(self) -> None:
        self._keys: list[str] = []
        self._failures: list[str | None] = []
        self._ends = array("q", [0])
        self._extensions: list[str] = []
        self._member_faults: list[str | None] = []
        self._numbers = {name: array("q") for name in self._fields}

    def _add(self, member: Member) -> None:
        key, extension = key_and_extension(member.name)
        if extension not in SIDECARS and not is_image(extension, with_raws=self._with_raws):
            return
        if not self._is_grouped:
            if self._pairing.ends_with(key, extension):
                raise IsGroupedError
            if extension not in SIDECARS:
                self._close()
                self._key, self._open = member.name, {extension: member}
            return
        if key != self._key:
            self._close()
            self._key = key
        if extension in self._open:
            reason = f"{one_line(member.name)} comes several times in its sample: leave one"
            self._faults[extension] = (ErrorKind.REFUSED, reason)
            return
        self._open[extension] = member

    def _add_damage(self, damage: Damage) -> None:
        """What is lost is one failed row: the sample in which the archive ends, else one for whatever follows."""
        if not any(member.is_cut for member in self._open.values()):
            self._close()
            self._end_sample(f"damaged at byte {damage.offset}", (ErrorKind.UNREADABLE, damage.reason))

    def _close(self) -> None:
        """The open sample is whole."""
        if self._key is None:
            return
        cut = next((member.fault for member in self._open.values() if member.is_cut), None)
        for extension, member in self._open.items():
            self._extensions.append(extension)
            self._member_faults.append(stored_fault(self._faults.get(extension, member.fault)))
            for name, numbers in self._numbers.items():
                numbers.append(getattr(member, name))
            if extension in SIDECARS:
                self._columns.add(extension)
                self._has_numbers_only &= extension != CLASS or member.fault is not None or is_number(member.content)
        self._end_sample(self._key, cut)
        self._key, self._open, self._faults = None, {}, {}

    def _end_sample(self, key: str, failure: RowFault | None) -> None:
        """The members that were added last are those of a sample."""
        self._keys.append(key)
        self._hashes.append(hash(key))
        self._failures.append(stored_fault(failure))
        self._ends.append(len(self._extensions))
        if len(self._keys) >= _BATCH_SAMPLES:
            self._flush()

    def _flush(self) -> None:
        """The samples so far become a batch."""
        numbers = [pa.array(np.array(numbers, np.int64)) for numbers in self._numbers.values()]
        arrays = [pa.array(self._extensions, pa.string()), pa.array(self._member_faults, pa.string()), *numbers]
        members = pa.StructArray.from_arrays(arrays, fields=list(self._member_type()))
        ends = pa.array(np.array(self._ends, np.int32))
        columns = [
            pa.array(self._keys, pa.string()),
            pa.array(self._failures, pa.string()),
            pa.ListArray.from_arrays(ends, members),
        ]
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=self._schema()))
        self._clear()

    def _member_type(self) -> pa.DataType:
        numbers = [(name, pa.int64()) for name in self._fields]
        return pa.struct([("extension", pa.string()), ("fault", pa.string()), *numbers])

    def _schema(self) -> pa.Schema:
        return pa.schema([("key", pa.string()), ("failure", pa.string()), ("members", pa.list_(self._member_type()))])


def _with_unique_keys(index: pa.Table) -> pa.Table:
    """An index in which a key that came before has a number, and its row fails: ids are unique in a job."""
    chunks = index["key"].dictionary_encode().chunks  # with one dictionary for all
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    is_first = np.zeros(len(codes), bool)
    is_first[np.unique(codes, return_index=True)[1]] = True
    keys, failures = index["key"].to_pylist(), index["failure"].to_pylist()
    taken = {key for key in keys if _DOUBLED.fullmatch(key)}
    last: dict[str, int] = {}
    for row in np.flatnonzero(~is_first).tolist():
        key, number = keys[row], last.get(keys[row], 1) + 1
        while f"{key}#{number}" in taken:
            number += 1
        last[key] = number
        taken.add(f"{key}#{number}")
        keys[row] = f"{key}#{number}"
        reason = f"the key {one_line(key)} came before in this archive: give each sample a key of its own"
        failures[row] = failures[row] or stored_fault((ErrorKind.REFUSED, reason))
    named = index.set_column(0, index.schema.field(0), pa.array(keys, pa.string()))
    return named.set_column(1, index.schema.field(1), pa.array(failures, pa.string()))


def has_image(index: pa.Table) -> bool:
    """Whether any member in an index is an image."""
    extensions = (chunk.flatten().field("extension") for chunk in index["members"].chunks)
    return any(name not in SIDECARS for names in extensions for name in names.unique().to_pylist())


def read_samples(index: pa.Table, start: int, count: int) -> Iterator[list[Sample]]:
    """Samples `start` to `start + count` of an archive by its index, a few at a time."""
    for batch in index.slice(start, count).to_batches(max_chunksize=READ_SAMPLES):
        keys, failures, lists = batch.columns
        ends = lists.offsets.to_numpy().tolist()
        first = ends[0]
        values = lists.values.slice(first, ends[-1] - first).flatten()
        members = list(map(StoredMember, *(column.to_pylist() for column in values)))
        own = (members[low - first : high - first] for low, high in pairwise(ends))
        yield list(map(Sample, keys.to_pylist(), failures.to_pylist(), own))
