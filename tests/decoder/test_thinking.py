"""Thoughts and caption are told apart, whether the tags are tokens or text and whoever opened the thoughts."""

import pytest
from tokenizers import AddedToken, Tokenizer

from batchcap.decoder.thinking import Answer, ThinkingParser
from batchcap.model.prompt import Detokenizer
from tests.checkpoints import THINK_TOKENS, make_tokenizer


def tokenizer_of(kind: str) -> Tokenizer:
    tokenizer = make_tokenizer(thinks=kind == "tokens")
    if kind == "special tokens":  # these vanish from decoded text
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in THINK_TOKENS])
    return tokenizer


@pytest.fixture(params=["tokens", "special tokens", "text"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)


def read(tokenizer: Tokenizer, text: str, *, opened: bool, cut: bool = False) -> Answer:
    return ThinkingParser(tokenizer, opened=opened).read(tokenizer.encode(text).ids, cut=cut)


OPENED = {
    "It is a cat.\n</think>\n\nA cat.": Answer("It is a cat.", "A cat."),
    "\n\n</think>\n\nA cat.": Answer(None, "A cat."),
    "</think>A cat.": Answer(None, "A cat."),
    "It is a cat": Answer("It is a cat", ""),
    "It is a cat.</think>": Answer("It is a cat.", ""),
    "<think>\nIt is a cat.\n</think>\nA cat.": Answer("It is a cat.", "A cat."),
    "": Answer(None, ""),
}
NOT_OPENED = {
    "A cat.": Answer(None, "A cat."),
    "<think>\nIt is a cat.\n</think>\n\nA cat.": Answer("It is a cat.", "A cat."),
    "\n <think></think>A cat.": Answer(None, "A cat."),
    "<think>It is a": Answer("It is a", ""),
    "": Answer(None, ""),
}


@pytest.mark.parametrize("text", OPENED)
def test_thoughts_opened_by_the_prompt(tokenizer: Tokenizer, text: str) -> None:
    assert read(tokenizer, text, opened=True) == OPENED[text]


@pytest.mark.parametrize("text", NOT_OPENED)
def test_thoughts_opened_by_the_model_or_none(tokenizer: Tokenizer, text: str) -> None:
    assert read(tokenizer, text, opened=False) == NOT_OPENED[text]


def test_the_last_closing_tag_is_the_border(tokenizer: Tokenizer) -> None:
    """Thoughts about a screenshot may name the tag; nothing of them may get into the caption."""
    found = read(tokenizer, "It shows </think> as a word.</think>A screenshot.", opened=True)
    assert found.caption == "A screenshot."
    assert found.thinking is not None
    assert found.thinking.endswith("as a word.")


@pytest.mark.parametrize("kind", ["tokens", "text"])
@pytest.mark.parametrize("text", ["A poster says <think> twice.", "A poster says </think>.", " two  blanks ", "\ufffd"])
def test_an_answer_that_does_not_begin_with_thoughts_is_left_as_it_is(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text).ids
    assert ThinkingParser(tokenizer, opened=False).read(ids, cut=False) == Answer(
        None, Detokenizer(tokenizer).text(ids)
    )


def test_text_that_looks_like_the_tag_is_none_where_the_tag_is_a_token() -> None:
    tokenizer = tokenizer_of("tokens")
    ids = [token for part in ("a</", "think>", "b") for token in tokenizer.encode(part).ids]
    assert ThinkingParser(tokenizer, opened=True).read(ids, cut=False) == Answer("a</think>b", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A cat \u4e00", Answer("A cat", "")), ("A \u4e00</think>a cat \u4e00", Answer("A \u4e00", "a cat"))],
)
def test_a_cut_inside_a_character_is_hidden_in_what_came_last(text: str, expected: Answer) -> None:
    tokenizer = tokenizer_of("tokens")
    ids = tokenizer.encode(text).ids[:-1]  # the tiny tokenizer spells this character in three tokens
    assert ThinkingParser(tokenizer, opened=True).read(ids, cut=True) == expected
