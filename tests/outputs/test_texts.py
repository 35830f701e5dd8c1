"""Captions as texts: cut between words, joined as sentences, and the right one of several."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.config import Existing
from batchcap.outputs.texts import Accessible, accessible, joined, shortened


@pytest.mark.parametrize(
    ("text", "letters", "expected"),
    [
        ("A cat on a mat", 14, "A cat on a mat"),
        ("A cat on a mat", 13, "A cat on a…"),
        ("A cat on a mat", 12, "A cat on a…"),
        ("A cat on a mat", 11, "A cat on a…"),
        ("A cat on a mat", 10, "A cat on…"),
        ("A cat, on a mat", 8, "A cat…"),
        ("Donaudampfschiff", 6, "Donau…"),
        ("猫がマットの上に座っている", 6, "猫がマット…"),
    ],
)
def test_a_text_is_cut_at_the_end_of_a_word(text: str, letters: int, expected: str) -> None:
    assert shortened(text, letters) == expected


@given(st.text(), st.integers(20, 60))
def test_no_text_is_too_long(text: str, letters: int) -> None:
    assert len(shortened(text, letters)) <= letters


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([""], ("", "")),
        (["a", "b", "c"], ("a", "c")),
        (["long", "short"], ("short", "long")),
        (["short", "alt", "x"], ("alt", "x")),
        (["description", "extended", "mood"], ("description", "extended")),
    ],
)
def test_the_right_one_of_several(prompts: list[str], expected: tuple[str, str]) -> None:
    answers = [(name, f"{name} it\nis. ") for name in prompts]
    alt, extended = expected
    assert accessible(answers, 250) == Accessible(f"{alt} it is.".strip(), f"{extended} it\nis. ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("One.", "Two.", ("One. Two.", "Two. One.")),
        ("one\n", " two ", ("one, two", "two, one")),
        ("", "two", ("two", "two")),
        ("猫。", "two", ("猫。 two", "two, 猫。")),
    ],
)
def test_texts_are_joined(old: str, new: str, expected: tuple[str, str]) -> None:
    assert (joined(old, new, Existing.APPEND), joined(old, new, Existing.PREPEND)) == expected
