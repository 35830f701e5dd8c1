"""Ranges of numbers in names, as WebDataset and shells write them."""

from itertools import islice

import pytest

from batchcap.inputs.braces import expanded, has_range, without_ranges


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a{0..2}.tar", ["a0.tar", "a1.tar", "a2.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..011}", ["008", "009", "010", "011"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{2..0}x", ["2x", "1x", "0x"]),
        ("{00..00}", ["00"]),
        ("{0..1}-{0..1}", ["0-0", "0-1", "1-0", "1-1"]),
        ("{a..c}{1,2}{1...2}{}{-1..1}", ["{a..c}{1,2}{1...2}{}{-1..1}"]),
        ("{{0..1}}", ["{0}", "{1}"]),
    ],
)
def test_what_a_name_stands_for(name: str, names: list[str]) -> None:
    assert list(expanded(name)) == names
    assert has_range(name) == (names != [name])


def test_a_range_is_never_held_as_a_whole() -> None:
    assert list(islice(expanded("{0..999999999}{0..999999999}"), 2)) == ["00", "01"]


def test_the_part_before_the_first_range() -> None:
    assert without_ranges("a/b-{0..1}/{2..3}") == "a/b-"
    assert without_ranges("a/b") == "a/b"
