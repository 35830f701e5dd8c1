"""Owns what of foreign text may reach a terminal: names and captions must not steer it, nor look like lines of ours."""

import unicodedata

from batchcap.manifest.source import printable_name

_KEPT = "\n\t"
# Control characters (escape sequences begin with one), what turns the direction of writing, line separators, and halves
# of characters that no terminal can show.
_STEERING = frozenset({"Cc", "Zl", "Zp", "Cs"})
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: str) -> str:
    r"""Text for a terminal or a log: characters that steer it as `\uXXXX`, which is right inside of JSON, too."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _steers(character) else character for character in text)


def one_line(text: str) -> str:
    """Text of others in a message of ours: harmless, and on one line."""
    return "".join(_escaped(one) if one in _KEPT else one for one in harmless(text))


def shown_name(name: str) -> str:
    """A file name in a message: on one line, whatever it holds."""
    return one_line(printable_name(name))


def _steers(character: str) -> bool:
    return character not in _KEPT and (character in _TURNING or unicodedata.category(character) in _STEERING)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"
