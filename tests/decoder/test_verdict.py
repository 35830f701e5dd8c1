"""The loop stop finds endless repetition soon, never fires on prose, and verdicts say what a text looks like."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from batchcap.core.records import FinishReason, Verdict
from batchcap.decoder.loops import (
    MAX_CYCLE_TOKENS,
    MIN_LOOP_TOKENS,
    MIN_REPEATS_LONG,
    MIN_REPEATS_SHORT,
    SHORT_CYCLE_TOKENS,
    LoopDetector,
)
from batchcap.decoder.verdict import judge
from tests.checkpoints import DATA

# A loop is noticed at the latest after so many tokens of it.
LATEST = max(MIN_LOOP_TOKENS, MIN_REPEATS_SHORT * MAX_CYCLE_TOKENS)

PROSE = [
    "a cat, a dog, a cat and a dog",
    "a red car, a red car, a red car and a blue car",
    "The sign says 1000000 and below it 100000000000.",
    "very very very very very big",
    "one two one two one two one two three",
    "row row row your boat gently down the stream merrily merrily merrily merrily life is but a dream",
    "There are three apples: the first apple is red, the second apple is red, the third apple is red, and a pear.",
    "Three men: " + "a man in a blue shirt and black pants, " * 3 + "all waving.",
    "On the left, a man in a blue shirt. On the right, a man in a blue shirt. Between them, a man in a blue shirt.",
]


def detect(tokens: list[int]) -> tuple[int, int] | None:
    """How many tokens were read until a loop was found, and how many were before its repeats."""
    detector = LoopDetector()
    for count, token in enumerate(tokens, 1):
        detector.add(token)
        if detector.tokens_before_repeats is not None:
            return count, detector.tokens_before_repeats
    return None


def is_endless(tokens: list[int]) -> bool:
    """The rule in its plainest form: some tail of enough tokens equals itself shifted by a short cycle."""
    for cycle in range(1, MAX_CYCLE_TOKENS + 1):
        repeats = MIN_REPEATS_SHORT if cycle < SHORT_CYCLE_TOKENS else MIN_REPEATS_LONG
        length = max(MIN_LOOP_TOKENS, repeats * cycle)
        tail = tokens[-length:]
        if len(tail) == length and tail[cycle:] == tail[:-cycle]:
            return True
    return False


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The real model's, since what is a cycle depends on what is a token."""
    return Tokenizer.from_file(str(DATA / "tokenizer.json"))


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_no_loop(tokenizer: Tokenizer, text: str) -> None:
    assert detect(tokenizer.encode(text).ids) is None


@pytest.mark.parametrize("text", ["very ", "0", "the cat and ", "It is a cat. It is on a mat. ", "猫和", "!"])
def test_endless_text_is_a_loop(tokenizer: Tokenizer, text: str) -> None:
    assert detect(tokenizer.encode("An image of " + text * 600).ids) is not None


@settings(max_examples=200)
@given(
    start=st.lists(st.integers(0, 9), max_size=20),
    cycle=st.lists(st.integers(10, 19), min_size=1, max_size=MAX_CYCLE_TOKENS),
)
def test_a_loop_is_found_and_cut(start: list[int], cycle: list[int]) -> None:
    tokens = start + cycle * LATEST
    found = detect(tokens)
    assert found is not None
    read, kept = found
    assert read <= len(start) + LATEST
    assert len(start) < kept <= len(start) + len(cycle)
    assert read - len(start) >= MIN_LOOP_TOKENS


@settings(max_examples=300)
@given(st.lists(st.integers(0, 2), max_size=160))
def test_agrees_with_the_plain_rule(tokens: list[int]) -> None:
    found = detect(tokens)
    first = next((count for count in range(1, len(tokens) + 1) if is_endless(tokens[:count])), None)
    assert (found and found[0]) == first


@pytest.mark.parametrize(("cycle", "length"), [(1, 24), (6, 24), (7, 28), (15, 60), (16, 48), (32, 96)])
def test_a_cycle_is_a_loop_from_so_many_tokens_on(cycle: int, length: int) -> None:
    start, loop = [99, 98], [*range(cycle)] * length
    assert detect(start + loop[: length - 1]) is None
    assert detect(start + loop[:length]) == (len(start) + length, len(start) + cycle)


def test_a_loop_that_ended_is_none() -> None:
    detector = LoopDetector()
    for token in [*[1] * 50, 2]:
        detector.add(token)
    assert detector.tokens_before_repeats is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat on a mat.", Verdict.OK),
        ("1000000", Verdict.OK),
        ("一只猫坐在垫子上。", Verdict.OK),
        ("बिल्ली चटाई पर बैठी है", Verdict.OK),
        ("Zzz", Verdict.OK),
        ("", Verdict.EMPTY),
        ("!!!!", Verdict.DEGENERATE),
        ("!!!!!!!!!!!!!!!!!!!!!", Verdict.DEGENERATE),
        ("0000000000000000", Verdict.DEGENERATE),
        ("a a a a a a a a a a a a a", Verdict.DEGENERATE),
        ("a \ufffd cat", Verdict.DEGENERATE),
    ],
)
def test_verdict_on_finished_text(text: str, expected: Verdict) -> None:
    assert judge(text, FinishReason.STOP, looping=False) is expected


def test_verdict_on_how_it_ended() -> None:
    assert judge("a cat", FinishReason.LENGTH, looping=False) is Verdict.TRUNCATED
    assert judge("a cat", FinishReason.LOOP, looping=True) is Verdict.REPEATED
    assert judge("a cat a cat", FinishReason.LENGTH, looping=True) is Verdict.REPEATED
    assert judge("!!!!!!", FinishReason.LOOP, looping=True) is Verdict.DEGENERATE


@pytest.mark.parametrize(
    ("finish_reason", "looping", "expected"),
    [
        (FinishReason.STOP, False, Verdict.EMPTY),
        (FinishReason.LENGTH, False, Verdict.TRUNCATED),
        (FinishReason.LENGTH, True, Verdict.REPEATED),
        (FinishReason.LOOP, True, Verdict.REPEATED),
    ],
)
def test_verdict_on_an_answer_without_a_caption(finish_reason: FinishReason, looping: bool, expected: Verdict) -> None:
    assert judge("", finish_reason, looping=looping, thought=True) is expected
    assert judge("", finish_reason, looping=looping, thought=False) is Verdict.EMPTY
    assert judge("!!!!", FinishReason.STOP, looping=looping, thought=True) is Verdict.DEGENERATE
