"""Owns where the texts of properties stand in an XMP packet, as expat tells it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_ROOT, _NODE, _ABOUT, _LI = f"{RDF} RDF", f"{RDF} Description", f"{RDF} about", f"{RDF} li"
_CONTAINERS = (f"{RDF} Alt", f"{RDF} Seq", f"{RDF} Bag")
_LANG = "http://www.w3.org/XML/1998/namespace lang"
DEFAULT = "x-default"
# A start tag of a well-formed document in UTF-8, and one attribute of it.
_TAG = re.compile(rb"""<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")
_ATTRIBUTE = re.compile(rb"""\s([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")


class PacketError(Exception):
    """A packet that can't be extended; the message says why."""


@dataclass(frozen=True, slots=True)
class Property:
    """A property of XMP.

    Attributes:
        namespace: its URI.
        prefix: the usual one.
        name: inside of the namespace.
        has_languages: whether its value is a text for each language, of which batchcap writes that without a language.
    """

    namespace: str
    prefix: str
    name: str
    has_languages: bool = True

    @property
    def key(self) -> str:
        """As expat names it."""
        return f"{self.namespace} {self.name}"

    def element(self, text: str) -> str:
        """The property with a text that is escaped already."""
        if self.has_languages:
            text = f'<rdf:Alt><rdf:li xml:lang="{DEFAULT}">{text}</rdf:li></rdf:Alt>'
        return f"<{self.prefix}:{self.name}>{text}</{self.prefix}:{self.name}>"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the text of a property stands.

    Attributes:
        text: that is there.
        start: first byte of what another text takes the place of.
        end: the byte behind it.
        head: what comes before the text; None: the property has a form that is not known, and stays as it is.
        tail: what comes behind it.
        is_attribute: whether it stands in quotes.
    """

    text: str
    start: int = 0
    end: int = 0
    head: bytes | None = b""
    tail: bytes = b""
    is_attribute: bool = False


@dataclass(slots=True)
class Element:
    """An element: its start tag is at [start, inside), its content at [inside, close), its end tag at [close, end).

    Attributes:
        name: URI and name.
        attributes: values by URI and name.
        tag: its start tag.
        is_kept: whether it is a property that is looked for, or inside of one; only then has it children and texts.
    """

    name: str
    attributes: dict[str, str]
    tag: bytes
    start: int
    is_kept: bool
    close: int = 0
    end: int = 0
    children: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def inside(self) -> int:
        """The byte behind its start tag."""
        return self.start + len(self.tag)

    @property
    def is_empty_tag(self) -> bool:
        """Whether it has no end tag."""
        return self.tag.endswith(b"/>")

    @property
    def typed_name(self) -> bytes:
        """Its name with the prefix that the document has for it."""
        return re.split(rb"[\s/>]", self.tag[1:], maxsplit=1)[0]

    @property
    def text(self) -> str:
        """What stands in it, children apart."""
        return "".join(self.texts)

    def content_slot(self) -> Slot:
        """The slot of its whole content."""
        if self.is_empty_tag:
            return Slot("", self.inside - 2, self.inside, b">", b"</" + self.typed_name + b">")
        return Slot(self.text, self.inside, self.close)


class Reader:
    """Finds the places of properties.

    Attributes:
        slots: of properties, by their keys.
        about: what the descriptions are about; None: there is no description.
    """

    def __init__(self, data: bytes, properties: Mapping[str, Property]) -> None:
        self.slots: dict[str, Slot] = {}
        self.about: str | None = None
        self._data = data
        self._properties = properties
        self._found_root: Element | None = None
        self._open: list[Element] = []
        parser = expat.ParserCreate("utf-8", " ")
        parser.namespace_prefixes = True
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.StartElementHandler = lambda name, attributes: self._start(name, attributes, parser.CurrentByteIndex)
        parser.EndElementHandler = lambda _name: self._end(parser.CurrentByteIndex)
        parser.CharacterDataHandler = self._characters
        try:
            parser.Parse(data, True)  # noqa: FBT003 - expat's own: this is all
        except expat.ExpatError as error:
            raise PacketError(f"it is no well-formed XML: {error}") from None

    @property
    def root(self) -> Element:
        """The element that holds the descriptions."""
        if self._found_root is None:
            raise PacketError("it holds no rdf:RDF")
        return self._found_root

    def _start(self, typed: str, attributes: dict[str, str], index: int) -> None:
        tag = _TAG.match(self._data, index)
        if tag is None:
            raise PacketError(f"its tag at byte {index} can't be read")
        name = _without_prefix(typed)
        plain = {_without_prefix(one): value for one, value in attributes.items()}
        parent = self._open[-1] if self._open else None
        is_node = parent is not None and parent is self._found_root and name == _NODE
        is_property = (
            len(self._open) > 1
            and self._open[-2] is self._found_root
            and self._open[-1].name == _NODE
            and name in self._properties
        )
        element = Element(name, plain, tag.group(), index, is_property or (parent is not None and parent.is_kept))
        if parent is not None and parent.is_kept:
            parent.children.append(element)
        self._open.append(element)
        if name == _ROOT and self._found_root is None:
            self._found_root = element
        elif is_node:
            self._describe(element, attributes)

    def _describe(self, node: Element, attributes: dict[str, str]) -> None:
        """Take a description of the image: what it is about, and properties in the form of attributes."""
        if self.about is None:
            self.about = node.attributes.get(_ABOUT, node.attributes.get("about", ""))
        typed = {_typed_name(one): _without_prefix(one) for one in attributes}
        for found in _ATTRIBUTE.finditer(node.tag):
            key = typed.get(found.group(1).decode(), "")
            if key in self._properties:
                start, end = node.start + found.start(2) + 1, node.start + found.end(2) - 1
                self._keep(key, Slot(node.attributes[key], start, end, is_attribute=True))

    def _end(self, index: int) -> None:
        element = self._open.pop()
        if element.is_empty_tag:
            element.close = element.end = element.inside
        else:
            element.close, element.end = index, self._data.index(b">", index) + 1
        if element.is_kept and not self._open[-1].is_kept:
            self._keep(element.name, self._slot_of(element))

    def _characters(self, text: str) -> None:
        if self._open and self._open[-1].is_kept:
            self._open[-1].texts.append(text)

    def _keep(self, key: str, slot: Slot) -> None:
        """Of several of one property, the first that has a text."""
        known = self.slots.get(key)
        if known is None or not (known.text.strip() or known.head is None):
            self.slots[key] = slot

    def _slot_of(self, element: Element) -> Slot:
        if element.attributes.keys() - {_LANG}:
            return Slot(element.text, head=None)
        if not element.children:
            return element.content_slot() if element.text.strip() else self._hollow(element)
        container = element.children[0]
        if len(element.children) > 1 or container.name not in _CONTAINERS or container.attributes:
            return Slot(element.text, head=None)
        items = [one for one in container.children if one.name == _LI]
        if not items:
            return self._hollow(element)
        return _slot_of_items(container, items)

    def _hollow(self, element: Element) -> Slot:
        """The slot of a property without any text: all of it."""
        wanted = self._properties[element.name]
        head, tail = wanted.element("\0").split("\0")
        declared = f' xmlns:rdf="{RDF}" xmlns:{wanted.prefix}="{wanted.namespace}">'
        return Slot("", element.start, element.end, head.replace(">", declared, 1).encode(), tail.encode())


def _slot_of_items(container: Element, items: list[Element]) -> Slot:
    """The slot among the texts of several languages: that without one, or the place before the first."""
    found = [one for one in items if one.attributes.get(_LANG, DEFAULT).lower() == DEFAULT]
    item = found[0] if found else items[0]
    if item.children or item.attributes.keys() - {_LANG}:
        return Slot(item.text, head=None)
    if found:
        return item.content_slot()
    name = item.typed_name
    head = b"<" + name + f' xml:lang="{DEFAULT}">'.encode()
    return Slot(item.text, container.inside, container.inside, head, b"</" + name + b">")


def _refuse_doctype(name: str, _system: str | None, _public: str | None, _has_subset: int) -> None:
    raise PacketError(f"it has a DOCTYPE ({name[:40]!r}), which XMP has no use for")


def _without_prefix(typed: str) -> str:
    """URI and name of what expat gives: these and the prefix, or fewer where there is none."""
    return " ".join(typed.split(" ")[:2])


def _typed_name(typed: str) -> str:
    parts = typed.split(" ")
    return f"{parts[2]}:{parts[1]}" if len(parts) > 2 else parts[-1]
