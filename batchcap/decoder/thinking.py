"""Owns the way from a row's tokens to its texts: what the model thought, and the caption.

Thinking models write `<think>` thoughts `</think>` caption; the chat template of Qwen3-VL-*-Thinking writes the first
tag itself. The last `</think>` is the border, as in Qwen's own parsing example: thoughts may speak of the tag, and
nothing of them may get into the caption.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer

from batchcap.model.prompt import THINK_CLOSE, THINK_OPEN, Detokenizer, without_cut_character


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote: its thoughts, None where it had none, and the caption, empty where it came to none."""

    thinking: str | None
    caption: str


class ThinkingParser:
    """Splits answers of one model.

    Where the tokenizer has the tags as tokens they are looked for among the tokens, since decoding may leave them out
    and text that merely looks like them is no tag; else in the text.

    Args:
        tokenizer: the model's.
        opened: whether the prompt ends with `<think>`, so that every answer begins inside the thoughts.
    """

    def __init__(self, tokenizer: Tokenizer, *, opened: bool) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._opened = opened
        opening, closing = tokenizer.token_to_id(THINK_OPEN), tokenizer.token_to_id(THINK_CLOSE)
        self._tags = None if opening is None or closing is None else (opening, closing)

    def read(self, token_ids: list[int], *, cut: bool) -> Answer:
        """The texts of an answer.

        Args:
            token_ids: new tokens without the stop token.
            cut: whether the answer may end in the middle of a character.
        """
        thinking, caption = self._split_tokens(token_ids, *self._tags) if self._tags else self._split_text(token_ids)
        if cut and caption is None:
            thinking = without_cut_character(thinking or "")
        elif cut:
            caption = without_cut_character(caption or "")
        return Answer(thinking or None, caption or "")

    def _split_tokens(self, token_ids: list[int], open_id: int, close_id: int) -> tuple[str | None, str | None]:
        """Thoughts and caption; None for the one that was never begun."""
        text = self._detokenizer.text
        if open_id in token_ids and not text(token_ids[: token_ids.index(open_id)]):
            token_ids = token_ids[token_ids.index(open_id) + 1 :]
        elif not self._opened:
            return None, text(token_ids)
        if close_id not in token_ids:
            return text(token_ids), None
        border = len(token_ids) - 1 - token_ids[::-1].index(close_id)
        return text(token_ids[:border]), text(token_ids[border + 1 :])

    def _split_text(self, token_ids: list[int]) -> tuple[str | None, str | None]:
        """As `_split_tokens`."""
        text = self._detokenizer.text(token_ids)
        if not (self._opened or text.startswith(THINK_OPEN)):
            return None, text
        thinking, border, caption = text.removeprefix(THINK_OPEN).rpartition(THINK_CLOSE)
        return (thinking.strip(), caption.strip()) if border else (caption.strip(), None)
