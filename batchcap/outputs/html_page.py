"""Owns HTML pages as text: where their images stand and lead to, and the same page with other alt texts.

A page is never written anew from a tree: the tokenizer tells where tags stand, and only `alt` attributes are put in.
"""

import codecs
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import accumulate
from urllib.parse import unquote, urljoin, urlsplit

# A host that no page can mean: addresses that end up there lead to files of the site.
_SITE = "http://pages.invalid"
_NAME = re.compile(r"<[^\s/>]+")
# As browsers take attributes apart; what is malformed gives a name that means nothing.
_ATTRIBUTE = re.compile(r"""[\s/]*([^\s/>=][^\s/>=]*)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s>"'][^\s>]*)?)?""")
_META_CHARSET = re.compile(rb"""<meta[^>]+?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.I)
_HEAD_BYTES = 1024  # in which the HTML standard looks for the encoding
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Elements whose content is text, whatever it looks like; the tokenizer itself knows script and style.
_TEXT_ELEMENTS = frozenset({"textarea", "title", "xmp", "iframe", "noembed", "noframes"})
_BETWEEN_CANDIDATES = re.compile(r"\s+[\d.]+[wxh]\s*,|,\s+|,$")
_SPACES = "\t\n\f\r "


class PageError(Exception):
    """A page that can't be read as it is; the message says why."""


@dataclass(frozen=True, slots=True)
class PageImage:
    """An `img` of a page.

    Attributes:
        places: paths that it may lead to, best first.
        alt: its alt text; None: it has no such attribute.
        start: letter of the page that a new attribute takes the place of.
        end: the letter behind it.
    """

    places: tuple[str, ...]
    alt: str | None
    start: int
    end: int


class Page:
    """An HTML page.

    Args:
        content: the file.
        place: its absolute path, with `/` between.

    Raises:
        PageError: its encoding does not give its bytes back.
    """

    def __init__(self, content: bytes, place: str) -> None:
        self._codec = _codec_of(content)
        try:
            self._text = content.decode(self._codec, "surrogateescape")
            is_same = self._text.encode(self._codec, "surrogateescape") == content
        except UnicodeError:
            is_same = False
        if not is_same:
            raise PageError(f"it is not {self._codec}, as it says")
        reader = _ImageReader(self._text, place)
        reader.feed(self._text)  # not closed: what has no end at the end of a page is nothing to browsers, too
        self.images = tuple(reader.images)

    def with_alts(self, alts: Mapping[PageImage, str]) -> bytes:
        """The file with other alt texts for some of its images."""
        pieces, place = list[str](), 0
        for image, alt in sorted(alts.items(), key=lambda pair: pair[0].start):
            shown = html.escape(alt).encode(self._codec, "xmlcharrefreplace").decode(self._codec)
            space = " " if image.start == image.end else ""
            pieces += [self._text[place : image.start], f'{space}alt="{shown}"']
            place = image.end
        return "".join([*pieces, self._text[place:]]).encode(self._codec, "surrogateescape")


class _ImageReader(HTMLParser):
    """Finds the images of a page."""

    def __init__(self, text: str, place: str) -> None:
        super().__init__(convert_charrefs=True)
        self.images: list[PageImage] = []
        self._line_starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
        self._base = f"{_SITE}{_quoted(place)}"
        self._has_base = False
        self._sources: list[str] = []  # of the `picture` that is open

    def parse_marked_section(self, i: int, report: bool = True) -> int:  # noqa: ARG002, FBT001, FBT002 - as inherited
        """Take `<![…>` for a comment, as browsers do; the tokenizer ends at one that it does not know."""
        return int(self.parse_bogus_comment(i))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(tag, attrs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(tag, attrs)
        if tag in _TEXT_ELEMENTS:
            self.set_cdata_mode(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "picture":
            self._sources = []

    def _tag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in reversed(attrs)}  # the first of several is what counts
        if tag == "base" and "href" in given and not self._has_base:
            self._has_base = True
            self._base = _joined(self._base, given["href"])
        elif tag == "picture":
            self._sources = []
        elif tag == "source":
            self._sources += _candidates(given.get("srcset", ""))
        elif tag == "img":
            self._image(given)

    def _image(self, given: Mapping[str, str]) -> None:
        addresses = [given.get("src", ""), *_candidates(given.get("srcset", "")), *self._sources]
        places = (self._place(address) for address in addresses if address.strip(_SPACES))
        line, column = self.getpos()
        start = self._line_starts[line - 1] + column
        tag = self.get_starttag_text() or ""
        behind_name = _NAME.match(tag)
        inside = behind_name.end() if behind_name else 0
        first, last = _alt_span(tag, inside)
        found = tuple(dict.fromkeys(place for place in places if place))
        self.images.append(PageImage(found, given.get("alt"), start + first, start + last))

    def _place(self, address: str) -> str:
        """The path that an address leads to, on the disk or in the site; "" where it leads elsewhere."""
        whole = _joined(self._base, address)
        if not whole.startswith(f"{_SITE}/"):
            return ""
        return unquote(urlsplit(whole).path, errors="surrogateescape")


def _quoted(place: str) -> str:
    """A path as a part of an address in which no letter has a meaning of its own."""
    return place.replace("%", "%25").replace("?", "%3F").replace("#", "%23").replace(";", "%3B")


def _joined(base: str, address: str) -> str:
    """An address that stands in a page, as a whole; "" where it is none."""
    try:
        return urljoin(base, re.sub("[\t\n\r]", "", address.strip(_SPACES)))
    except ValueError:  # brackets that are no IPv6 address
        return ""


def _candidates(srcset: str) -> list[str]:
    """The addresses in a `srcset`."""
    parts = (part.split() for part in _BETWEEN_CANDIDATES.split(srcset))
    return [words[0] for words in parts if words]


def _alt_span(tag: str, inside: int) -> tuple[int, int]:
    """Where the `alt` attribute of a start tag stands; where one may be put, if it has none."""
    place = inside
    while found := _ATTRIBUTE.match(tag, place):
        if found.group(1).lower() == "alt":
            return found.start(1), found.end()
        place = found.end()
    return inside, inside


def _codec_of(content: bytes) -> str:
    for mark, codec in _BOMS:
        if content.startswith(mark):
            return codec
    declared = _META_CHARSET.search(content[:_HEAD_BYTES])
    try:
        codec = codecs.lookup(declared.group(1).decode()).name if declared else "utf-8"
    except LookupError:
        return "utf-8"
    # As the HTML standard has it: ISO 8859-1 and ASCII mean Windows-1252, and what could read this is not UTF-16.
    if codec in ("iso8859-1", "ascii"):
        return "cp1252"
    return "utf-8" if codec.startswith(("utf-16", "utf-32")) else codec
