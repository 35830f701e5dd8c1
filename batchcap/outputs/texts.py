"""Owns captions as texts of other forms: joined to somebody's, on one line, and which of several is the alt text."""

import hashlib
import re
from dataclasses import dataclass

from batchcap.config import Existing

# The prompts whose captions are taken for it, by their names.
_ALT_PROMPTS = ("alt", "short")
_EXTENDED_PROMPTS = ("long", "extended", "description")
_ENDS = (".", "!", "?", "…", ":", ";", "。")
_DIGEST_LETTERS = 16
_LAST_WORD = re.compile(r"\S+$")


@dataclass(frozen=True, slots=True)
class Accessible:
    """What the captions of an image are for people who do not see it.

    Attributes:
        alt: the alt text, on one line.
        extended: the extended description.
    """

    alt: str
    extended: str


def accessible(answers: list[tuple[str, str]], max_alt_letters: int) -> Accessible:
    """Alt text and extended description among captions.

    Args:
        answers: name of the prompt and caption, one at least.
        max_alt_letters: an alt text with more of them is cut.
    """
    named = dict(answers)
    alt = next((named[name] for name in _ALT_PROMPTS if name in named), answers[0][1])
    extended = next((named[name] for name in _EXTENDED_PROMPTS if name in named), answers[-1][1])
    return Accessible(shortened(" ".join(alt.split()), max_alt_letters), extended)


def shortened(text: str, max_letters: int) -> str:
    """A text of so many letters at most; cut at the end of a word, where there is one, with an ellipsis."""
    if len(text) <= max_letters:
        return text
    kept = text[: max_letters - 1]
    if not (text[max_letters - 1].isspace() or kept[-1].isspace()):
        kept = _LAST_WORD.sub("", kept) or kept
    return kept.rstrip(" ,;:–-") + "…"


def joined(old: str, new: str, existing: Existing) -> str:
    """A caption behind or before what somebody else wrote."""
    old, new = old.rstrip(), new.strip()
    if existing is Existing.PREPEND:
        old, new = new, old.lstrip()
    if not old or not new:
        return old + new
    return old + (" " if old.endswith(_ENDS) else ", ") + new


def digest_of_text(kind: str, text: str) -> str:
    """By which a text of ours is known again; `kind` is what it is the text of."""
    return hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).hexdigest()[:_DIGEST_LETTERS]
