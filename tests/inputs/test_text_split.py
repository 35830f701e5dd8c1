"""Records of text are found block by block, as a reader of one letter after the other would find them."""

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.inputs import text_groups
from batchcap.inputs.text_groups import groups_in
from batchcap.inputs.text_split import Rules, is_quoted_well, records_in, records_of
from tests.inputs.texts import small_steps

LINES, FIELDS = Rules(b" \t\r\n"), Rules(b"\r\n", b",")
LETTERS = st.lists(st.sampled_from(b',"\n\ra '), max_size=40).map(bytes)


def by_letter(text: bytes, rules: Rules) -> list[tuple[int, int]]:
    """The records, found as RFC 4180 is written."""
    state, start, found = "start", 0, []
    for place, code in enumerate(text):
        letter, ends = bytes([code]), False
        if rules.separator and state == "quoted":
            state = "closed" if letter == b'"' else "quoted"
        elif rules.separator and letter == b'"' and state in {"start", "closed"}:
            state = "quoted"
        else:
            ends = letter == b"\n"
            state = "start" if ends or letter == rules.separator else "field"
        if ends:
            found.append((start, place + 1))
            start = place + 1
    return [(low, high) for low, high in [*found, (start, len(text))] if text[low:high].strip(rules.blank)]


@settings(max_examples=400, deadline=None)
@given(LETTERS, st.sampled_from([LINES, FIELDS]), st.sampled_from([1, 2, 3, 7, 100]))
def test_records_in_blocks_of_any_size(text: bytes, rules: Rules, block_bytes: int) -> None:
    expected = by_letter(text, rules)
    whole = records_of(text, rules)
    assert list(zip(whole.starts.tolist(), whole.ends.tolist(), strict=True)) == expected
    with small_steps(9, block_bytes):
        found = list(records_in(io.BytesIO(b"xx" + text), 2, rules))
    pairs = [pair for some in found for pair in zip(some.starts - 2, some.ends - 2, strict=True)]
    assert pairs == expected
    assert [int(place) - 2 for some in found for place in some.newlines] == [
        place for place, code in enumerate(text) if code == 10
    ]


@settings(max_examples=200, deadline=None)
@given(LETTERS, st.sampled_from([LINES, FIELDS]), st.integers(1, 4), st.sampled_from([1, 5, 100]), st.integers(1, 20))
def test_groups_hold_each_record_once(
    text: bytes, rules: Rules, group_rows: int, block_bytes: int, group_bytes: int
) -> None:
    with small_steps(group_rows, block_bytes, group_bytes):
        groups = list(groups_in(io.BytesIO(b"xx" + text), 2, 5, rules))
    found = []
    for group in groups:
        part = (b"xx" + text)[group.start : group.start + group.size]
        records = records_of(part, rules)
        assert len(records) == group.rows <= group_rows
        lines = 5 + text[: group.start - 2].count(b"\n")
        assert group.line == lines
        found += [
            (int(low) + group.start - 2, int(high) + group.start - 2)
            for low, high in zip(records.starts, records.ends, strict=True)
        ]
    assert found == by_letter(text, rules)


def test_a_record_that_is_too_large_has_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_groups, "MAX_RECORD_BYTES", 50)
    text = b"a\nb\n" + b"x" * 60 + b'\nc\n"' + b"y\n" * 30
    with small_steps(100, 8, 20):
        groups = list(groups_in(io.BytesIO(text), 0, 1, FIELDS))
    assert [(group.rows, group.line, group.is_too_large) for group in groups] == [
        (2, 1, False),
        (1, 3, True),
        (1, 4, False),
        (1, 5, True),
    ]


def test_blocks_without_a_place_to_cut_are_read_on() -> None:
    with small_steps(9, 4):
        (records,) = [some for some in records_in(io.BytesIO(b'""""""""""'), 0, FIELDS) if len(some)]
    assert records.ends.tolist() == [10]


def test_irregular_quotes_are_told() -> None:
    for text, is_well in ((b'"a","b""c"\n"d\n"', True), (b'a"b', False), (b'"a"b,"c"', False), (b'"a', False)):
        assert is_quoted_well(text, b",") is is_well


def test_the_time_does_not_depend_on_the_quotes() -> None:
    """A quote in each field that has no meaning takes the slow way, which is slower by a factor and no more."""
    chance = random.Random(1)
    text = b"".join(b'%d,5" pipe,"x""y"\n' % chance.randrange(9**9) for _row in range(20_000))
    assert len(records_of(text, FIELDS)) == 20_000
