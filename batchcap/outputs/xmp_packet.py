"""Owns XMP packets: the texts of properties in one, and the same packet with other texts; all else keeps its bytes.

A packet is never written anew from a tree, since that would lose what other programs have in it: comments, prefixes,
order, white space. expat tells where things stand, and only texts of properties are put in their place.
"""

import codecs
import re
from collections.abc import Mapping
from xml.sax.saxutils import escape, quoteattr

from batchcap.outputs.xmp_reader import RDF, PacketError, Property, Reader

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_BOMS = (  # those of 32 bits first: they begin like those of 16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
_KNOWN_ENCODINGS = ("utf-8", "ascii", "iso8859-1", "cp1252")
# What XML 1.0 has no way for, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REFERENCES = {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}


class Packet:
    """An XMP packet, as a file of its own holds it.

    Args:
        content: the file.
        properties: those that are asked for later.

    Raises:
        PacketError: it is not well-formed, or not XMP; or it has a DOCTYPE, which XMP has no use for and whose entities
            could read files or fill the memory.
    """

    def __init__(self, content: bytes, properties: tuple[Property, ...]) -> None:
        self._codec = _codec_of(content)
        try:
            self._data = content.decode(self._codec).encode()
        except UnicodeDecodeError as error:
            raise PacketError(f"it is not {self._codec} as it says: {error.reason}") from None
        reader = Reader(self._data, {one.key: one for one in properties})
        self._slots = reader.slots
        self._root = reader.root
        self._about = reader.about or ""

    def text(self, wanted: Property) -> str:
        """The text of a property; "" where there is none."""
        slot = self._slots.get(wanted.key)
        return slot.text if slot is not None else ""

    def can_hold(self, wanted: Property) -> bool:
        """Whether the property may get another text: it has none, or is of a form that is known."""
        slot = self._slots.get(wanted.key)
        return slot is None or slot.head is not None

    def with_texts(self, texts: Mapping[Property, str]) -> bytes:
        """The file with the texts of some properties, all of which can hold one."""
        edits, missing = list[tuple[int, int, str]](), dict[Property, str]()
        for one, text in texts.items():
            slot = self._slots.get(one.key)
            if slot is None:
                missing[one] = text
            else:
                escaped = _escaped(text, is_attribute=slot.is_attribute)
                edits.append((slot.start, slot.end, f"{(slot.head or b'').decode()}{escaped}{slot.tail.decode()}"))
        if missing:
            edits.append(self._added(missing))
        content, place = [], 0
        for start, end, text in sorted(edits):
            content += [self._encoded(self._data[place:start].decode()), self._encoded(text)]
            place = end
        return b"".join([*content, self._encoded(self._data[place:].decode())])

    def _encoded(self, text: str) -> bytes:
        return text.encode(self._codec, errors="xmlcharrefreplace")

    def _added(self, texts: Mapping[Property, str]) -> tuple[int, int, str]:
        """A description of the same image at the end, with prefixes of its own: those of the document may be others."""
        root = self._root
        line = "\r\n" if b"\r\n" in self._data else "\n"
        before = self._data[: root.close].decode()
        indent = "" if root.is_empty_tag else before[len(before.rstrip(" \t")) :]
        spaces = {"rdf": RDF, **{one.prefix: one.namespace for one in texts}}
        declared = "".join(f' xmlns:{prefix}="{space}"' for prefix, space in spaces.items())
        block = [f" <rdf:Description rdf:about={quoteattr(self._about, _REFERENCES)}{declared}>"]
        block += [f"  {one.element(_escaped(text, is_attribute=False))}" for one, text in texts.items()]
        block += [" </rdf:Description>", ""]
        text = f"{line}{indent}".join(block)
        if root.is_empty_tag:
            return root.inside - 2, root.inside, f">{line}{text}</{root.typed_name.decode()}>"
        return root.close, root.close, text


def _escaped(text: str, *, is_attribute: bool) -> str:
    """A text as XML that gives it back: what XML can't hold as a replacement character."""
    text = _FORBIDDEN.sub("\ufffd", text)
    if is_attribute:
        return escape(text, {'"': "&quot;", "'": "&apos;", **_REFERENCES})
    return escape(text, {"\r": _REFERENCES["\r"]})


def _codec_of(content: bytes) -> str:
    for mark, codec in _BOMS:
        if content.startswith(mark):
            return codec
    declared = _DECLARED.match(content.removeprefix(codecs.BOM_UTF8))
    name = declared.group(1).decode() if declared else "utf-8"
    try:
        codec = codecs.lookup(name).name
    except LookupError:
        codec = ""
    if codec not in _KNOWN_ENCODINGS:
        raise PacketError(f"its encoding {name} is not one that batchcap writes")
    return codec
