"""Owns how text is shown: what of foreign text may reach a terminal, durations, tables, names that are addresses.

Names and captions of others must not steer a terminal, nor look like lines of ours.
"""

import os
import re
import unicodedata
from collections.abc import Sequence

_ADDRESS = re.compile(r"(?i)([a-z][a-z0-9+.-]*://|data:[a-z])")

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


def markdown_code(text: str, most: int = 300) -> str:
    """Text of others in Markdown, as code on one line: no mark-up, link, image, mention or tag in it has a meaning.

    Not to be put at the beginning of a line, nor into a table, where `|` would end the cell.

    Args:
        text: of anybody; empty text becomes a dash.
        most: letters that are shown.
    """
    shown = one_line(text)
    shown = shown if len(shown) <= most else f"{shown[:most]}…"
    if not shown.strip():
        return "–"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    # Between spaces, of which Markdown drops one at each end: the text may begin or end with one, or with a backtick.
    return f"{fence} {shown} {fence}" if shown[0] in "` " or shown[-1] in "` " else f"{fence}{shown}{fence}"


def shown_name(name: str) -> str:
    """A file name in a message: on one line, whatever it holds."""
    return one_line(printable_name(name))


def _steers(character: str) -> bool:
    return character not in _KEPT and (character in _TURNING or unicodedata.category(character) in _STEERING)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


def format_duration(seconds: float) -> str:
    """Seconds as `1 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def printable_name(name: str) -> str:
    r"""A file name as text: bytes that are not UTF-8 as `\xNN`."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def is_address(name: str) -> bool:
    """Whether a name leads to a web or store image (`https://`, `s3://`, `hf://`, `data:`) and not to a file."""
    return _ADDRESS.match(name) is not None


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; all have as many cells as the first."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
