"""Owns what a caption's tokens and text look like: endless repetition, and the verdict."""

from collections import Counter

from batchcap.core.records import FinishReason, Verdict

# A tail that is one cycle of tokens over and over is a loop from so many tokens and repeats on. Prose repeats words,
# not whole cycles: "a cat, a dog, a cat and a dog" has none, and a list of three equal items is a list. A cycle of
# a whole sentence is a loop from its third time on: a fourth would seldom fit into a caption.
MAX_CYCLE_TOKENS = 32
MIN_LOOP_TOKENS = 24
SHORT_CYCLE_TOKENS = 16
MIN_REPEATS_SHORT = 4
MIN_REPEATS_LONG = 3

# One character making up most of a text that is not short: "!!!!!!!!", "0000000".
MIN_DEGENERATE_CHARACTERS = 12
DEGENERATE_SHARE = 0.6
REPLACEMENT_CHARACTER = "\ufffd"


class LoopDetector:
    """Watches one caption's tokens for endless repetition; each token costs `MAX_CYCLE_TOKENS` comparisons."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # For each cycle length: how many of the last tokens equal the token one cycle before them.
        self._matches = [0] * (MAX_CYCLE_TOKENS + 1)

    def add(self, token: int) -> None:
        """Take in the next token."""
        tokens = self._tokens
        count = len(tokens)
        for cycle in range(1, min(MAX_CYCLE_TOKENS, count) + 1):
            self._matches[cycle] = self._matches[cycle] + 1 if tokens[count - cycle] == token else 0
        tokens.append(token)

    @property
    def tokens_before_repeats(self) -> int | None:
        """How many tokens there are up to the end of the first cycle; None where there is no loop."""
        for cycle in range(1, MAX_CYCLE_TOKENS + 1):
            length = self._matches[cycle] + cycle
            repeats = MIN_REPEATS_SHORT if cycle < SHORT_CYCLE_TOKENS else MIN_REPEATS_LONG
            if self._matches[cycle] and length >= max(MIN_LOOP_TOKENS, repeats * cycle):
                return len(self._tokens) - self._matches[cycle]
        return None


def judge(text: str, finish_reason: FinishReason, *, looping: bool, thought: bool = False) -> Verdict:
    """The verdict on a caption.

    An empty caption after thoughts is judged by how the answer ended: the model was stopped before it came to it.

    Args:
        text: the caption.
        finish_reason: why decoding ended.
        looping: whether the answer's tokens end in endless repetition, stopped or not.
        thought: whether the model wrote thoughts before it.
    """
    if not text and (not thought or finish_reason is FinishReason.STOP):
        return Verdict.EMPTY
    if text and _is_degenerate(text):
        return Verdict.DEGENERATE
    if looping or finish_reason is FinishReason.LOOP:
        return Verdict.REPEATED
    if finish_reason is FinishReason.LENGTH:
        return Verdict.TRUNCATED
    return Verdict.OK


def _is_degenerate(text: str) -> bool:
    """No letter or digit of any script at all, a broken character, or one character nearly all the way."""
    if REPLACEMENT_CHARACTER in text or not any(character.isalnum() for character in text):
        return True
    characters = [character for character in text if not character.isspace()]
    most = Counter(characters).most_common(1)[0][1]
    return len(characters) >= MIN_DEGENERATE_CHARACTERS and most > DEGENERATE_SHARE * len(characters)
