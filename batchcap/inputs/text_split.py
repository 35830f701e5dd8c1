"""Owns where the records of a text file begin and end, found block by block whatever the file's size."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 1 << 20
_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
_MAX_QUOTE_RUN_BYTES = 1 << 16

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the records of a format are told apart.

    Attributes:
        blank: the bytes of a line that is no record.
        separator: between fields; with one, fields may be quoted, and a newline inside of quotes ends no record. Empty:
            a record is a line.
    """

    blank: bytes
    separator: bytes = b""


@dataclass(frozen=True)
class Records:
    """Some consecutive records, without blank ones.

    Attributes:
        starts: byte that each begins with.
        ends: byte after each, its newline included.
        newlines: all newlines among them.
    """

    starts: Offsets
    ends: Offsets
    newlines: Offsets

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def line_offsets(self) -> Offsets:
        """How many lines each record begins after the first byte."""
        return np.searchsorted(self.newlines, self.starts)


def records_of(data: bytes, rules: Rules) -> Records:
    """The records of text that begins and ends with one."""
    found = _Splitter(rules, 0)
    return found.split(data, is_last=True)


def records_in(file: BinaryIO, start: int, rules: Rules) -> Iterator[Records]:
    """The records of a file from a byte on, some at a time, by their bytes in the file; each is given once it ends.

    No more is held than a block, however long a record is.
    """
    splitter = _Splitter(rules, start)
    file.seek(start)
    rest = b""
    while more := file.read(BLOCK_BYTES):
        rest += more
        size = _clean_cut(rest, rules)
        if size:
            yield splitter.split(rest[:size], is_last=False)
            rest = rest[size:]
    yield splitter.split(rest, is_last=True)


def _clean_cut(data: bytes, rules: Rules) -> int:
    """Where text can be cut so that what a quote in it means is seen without the rest; 0 where nowhere."""
    size = data.rfind(b"\n") + 1
    if size or not rules.separator:
        return size or len(data)
    for place in range(len(data) - 1, max(0, len(data) - _MAX_QUOTE_RUN_BYTES), -1):
        if _QUOTE not in (data[place - 1], data[place]):
            return place
    return 0


class _Splitter:
    """What is known of a record that has begun and not ended."""

    def __init__(self, rules: Rules, start: int) -> None:
        self._rules = rules
        self._place = start  # of the next block
        self._open = start  # where the open record begins
        self._is_blank = True  # the open record, as far as it was seen
        self._is_quoted = False  # whether the next block begins inside of quotes

    def split(self, block: bytes, *, is_last: bool) -> Records:
        """The records that end in a block."""
        data = np.frombuffer(block, np.uint8)
        newlines = np.flatnonzero(data == _NEWLINE)
        ends = newlines
        if self._rules.separator and (self._is_quoted or b'"' in block):
            ends, self._is_quoted = _unquoted(block, data, newlines, self._rules.separator, is_quoted=self._is_quoted)
        ends = ends + 1
        stop = self._place + len(block)
        if is_last and self._open < stop and (not len(ends) or ends[-1] < len(block)):
            ends = np.append(ends, len(block))
        found = self._without_blanks(block, data, ends, newlines)
        self._place = stop
        return found

    def _without_blanks(self, block: bytes, data: npt.NDArray[np.uint8], ends: Offsets, newlines: Offsets) -> Records:
        place, blank = self._place, self._rules.blank
        if not len(ends):
            self._is_blank = self._is_blank and not block.strip(blank)
            return Records(ends, ends, newlines + place)
        starts = np.concatenate(([0], ends[:-1]))
        is_record = np.ones(len(ends), bool)
        # What begins with a blank may be one; nearly nothing does. Of a block without a byte nothing is known.
        first_bytes = data[starts] if len(data) else np.full(1, blank[0])
        for index in np.flatnonzero(np.isin(first_bytes, list(blank))):
            is_record[index] = block[starts[index] : ends[index]].strip(blank) != b""
        starts = starts + place
        if self._open < place:
            starts[0] = self._open
            is_record[0] |= not self._is_blank
        self._open = place + int(ends[-1])
        self._is_blank = not block[ends[-1] :].strip(blank)
        return Records(starts[is_record], (ends + place)[is_record], newlines + place)


def _unquoted(
    block: bytes, data: npt.NDArray[np.uint8], newlines: Offsets, separator: bytes, *, is_quoted: bool
) -> tuple[Offsets, bool]:
    """The newlines outside of quotes, and whether the block ends inside of them.

    Where every quote opens a field, closes one or is doubled, a newline is outside after an even number of quotes.
    """
    quotes = np.flatnonzero(data == _QUOTE)
    if not _are_regular(data, quotes, separator, is_quoted=is_quoted):
        return _unquoted_by_field(block, separator, is_quoted=is_quoted)
    ranks = np.searchsorted(quotes, newlines) + int(is_quoted)
    return newlines[ranks % 2 == 0], (len(quotes) + int(is_quoted)) % 2 == 1


def is_quoted_well(block: bytes, separator: bytes) -> bool:
    """Whether every quote opens a field, closes one or is doubled."""
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    return len(quotes) % 2 == 0 and _are_regular(data, quotes, separator, is_quoted=False)


def _are_regular(data: npt.NDArray[np.uint8], quotes: Offsets, separator: bytes, *, is_quoted: bool) -> bool:
    """Whether quotes open and close in turn: each stands at the edge of a field, or beside another."""
    opening, closing = quotes[int(is_quoted) :: 2], quotes[int(not is_quoted) :: 2]
    before = data[opening[opening > 0] - 1]
    after = data[closing[closing < len(data) - 1] + 1]
    edges = [*separator, _NEWLINE, _QUOTE]
    return bool(np.isin(before, edges).all() and np.isin(after, [*edges, _RETURN]).all())


# What is left of a quoted field, its closing quote included.
REST_OF_QUOTED = re.compile(rb'(?:[^"]++|"")*+"')


def _unquoted_by_field(block: bytes, separator: bytes, *, is_quoted: bool) -> tuple[Offsets, bool]:
    """The same for any text: a quote that does not begin a field is a letter like others."""
    field_end = re.compile(b"[\n" + re.escape(separator) + b"]")
    ends: list[int] = []
    at, begins_field = 0, not is_quoted
    while at < len(block):
        if is_quoted or (begins_field and block[at] == _QUOTE):
            closed = REST_OF_QUOTED.match(block, at + (not is_quoted))
            if closed is None:
                return np.array(ends, np.int64), True
            at, is_quoted, begins_field = closed.end(), False, False
            continue
        found = field_end.search(block, at)
        if found is None:
            break
        at, begins_field = found.end(), True
        if found[0] == b"\n":
            ends.append(found.start())
    return np.array(ends, np.int64), is_quoted
