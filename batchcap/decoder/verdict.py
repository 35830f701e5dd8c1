"""Owns the verdict: what the text of a caption looks like."""

from collections import Counter

from batchcap.core.records import FinishReason, Verdict

# One character making up most of a text that is not short: "!!!!!!!!", "0000000".
MIN_DEGENERATE_CHARACTERS = 12
DEGENERATE_SHARE = 0.6
REPLACEMENT_CHARACTER = "\ufffd"


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
