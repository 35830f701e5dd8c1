"""Packets of other programs: what they have in them keeps its bytes, and what is put in is read back as it was."""

import re
import time
from xml.etree import ElementTree as ET

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from batchcap.outputs.xmp import _EMPTY, _OURS, ALT_TEXT, DESCRIPTION, EXTENDED, WRITER
from batchcap.outputs.xmp_packet import Packet
from batchcap.outputs.xmp_reader import RDF, PacketError, Property
from tests.outputs.xmp_samples import STYLES, described

NEW = {DESCRIPTION: "A cat.", ALT_TEXT: "Cat", EXTENDED: 'A "cat" & <dog> ]]> 🐈', WRITER: "batchcap"}


def packet(content: bytes | str) -> Packet:
    """A packet that is asked for our properties."""
    return Packet(content.encode() if isinstance(content, str) else content, _OURS)


def by_other_means(content: bytes, wanted: Property) -> str:
    """The text of a property as another parser finds it."""
    tag = f"{{{wanted.namespace}}}{wanted.name}"
    for node in ET.fromstring(content).iter(f"{{{RDF}}}Description"):
        if tag in node.attrib:
            return node.attrib[tag]
        for found in node.findall(tag):
            for item in found.iter(f"{{{RDF}}}li"):
                if item.get("{http://www.w3.org/XML/1998/namespace}lang", "x-default") == "x-default":
                    return item.text or ""
            return found.text or ""
    return ""


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "crlf"])
@pytest.mark.parametrize("style", STYLES)
def test_new_properties_are_put_in_and_nothing_else_changes(style: str, codec: str) -> None:
    text = described(style)
    if codec == "crlf":
        text, codec = text.replace("\n", "\r\n"), "utf-8"
    if codec == "utf-16":
        text = text.replace("UTF-8", "UTF-16")
    before = text.encode(codec)
    after = packet(before).with_texts(NEW)
    assert {one: packet(after).text(one) for one in NEW} == NEW
    assert {one: by_other_means(after, one) for one in NEW} == NEW
    end = "</q:RDF >" if style == "odd" else "</rdf:RDF>"
    place = before.rindex(end.encode({"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}.get(codec, codec)))
    assert after.startswith(before[:place])
    assert after.endswith(before[place:])


@pytest.mark.parametrize("style", STYLES)
def test_a_text_is_replaced_where_it_stands(style: str) -> None:
    text = described(style, "It &lt;was&gt; <!-- ! --><![CDATA[so & so]]>")
    found = packet(text)
    assert found.text(DESCRIPTION) == "It <was> so & so"
    after = found.with_texts({DESCRIPTION: "New & good"})
    head, tail = text.split("It &lt;was&gt; <!-- ! --><![CDATA[so & so]]>")
    assert after.decode() == f"{head}New &amp; good{tail}"
    assert found.with_texts({}) == text.encode()


DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:x="urn:x"'
ALT, END = "<dc:description><rdf:Alt>", "</rdf:Alt></dc:description></rdf:Description>"


@pytest.mark.parametrize(
    ("node", "there", "after"),
    [
        (f"<rdf:Description {DC} dc:description='it&apos;s'/>", "it's", "dc:description='N&apos;"),
        (f"<rdf:Description {DC}><dc:description>plain</dc:description></rdf:Description>", "plain", "n>N'</dc:d"),
        (f"<rdf:Description {DC}><dc:description/></rdf:Description>", "", "t\">N'</rdf:li></rdf:Alt></dc:d"),
        (
            f"<rdf:Description {DC}><dc:description ><rdf:Alt/></dc:description ></rdf:Description>",
            "",
            "x-default\">N'</rdf:li></rdf:Alt></dc:description></rdf:D",
        ),
        (
            f'<rdf:Description {DC}>{ALT}<rdf:li xml:lang="X-Default" />{END}',
            "",
            'xml:lang="X-Default" >N\'</rdf:li></rdf:Alt>',
        ),
        (
            f"<rdf:Description {DC}>{ALT}<rdf:li>bare</rdf:li>{END}",
            "bare",
            "<rdf:li>N'</rdf:li>",
        ),
        (
            f'<rdf:Description {DC}>{ALT}<rdf:li xml:lang="de">Ja</rdf:li>{END}',
            "Ja",
            '<rdf:Alt><rdf:li xml:lang="x-default">N\'</rdf:li><rdf:li xml:lang="de">Ja</rdf:li>',
        ),
        (
            f"<rdf:Description {DC}><dc:description> {END[10:]}<rdf:Description {DC} dc:description='second'/>",
            "second",
            "dc:description='N&apos;'",
        ),
    ],
)
def test_forms_of_a_property(node: str, there: str, after: str) -> None:
    text = f'<rdf:RDF xmlns:rdf="{RDF}">{node}</rdf:RDF>'
    found = packet(text)
    assert found.text(DESCRIPTION) == there
    made = found.with_texts({DESCRIPTION: "N'"})
    assert after in made.decode()
    assert packet(made).text(DESCRIPTION) == "N'"


@pytest.mark.parametrize(
    "inside",
    [
        '<dc:description rdf:parseType="Resource"><rdf:value>x</rdf:value></dc:description>',
        '<dc:description rdf:resource="urn:x"/>',
        "<dc:description><rdf:Description><rdf:value>x</rdf:value></rdf:Description></dc:description>",
        "<dc:description><rdf:Alt><rdf:li><x:y/></rdf:li></rdf:Alt></dc:description>",
        "<dc:description><rdf:Alt><rdf:li>a</rdf:li></rdf:Alt><rdf:Alt/></dc:description>",
    ],
)
def test_a_form_that_is_not_known_can_not_be_changed(inside: str) -> None:
    found = packet(f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description {DC}>{inside}</rdf:Description></rdf:RDF>')
    assert not found.can_hold(DESCRIPTION)
    assert found.can_hold(ALT_TEXT)


def test_what_only_looks_like_a_property() -> None:
    """It is that of another image, of a structure inside, or of another namespace."""
    text = (
        f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description {DC} x:description="a" description="b"><x:structure>'
        "<rdf:Description dc:description='c'><dc:description>d</dc:description></rdf:Description></x:structure>"
        "<x:description>e</x:description></rdf:Description></rdf:RDF>"
    )
    assert packet(text).text(DESCRIPTION) == ""


def test_an_empty_rdf_is_opened() -> None:
    made = packet(f'<a:RDF xmlns:a="{RDF}" />').with_texts({DESCRIPTION: "x"})
    assert by_other_means(made, DESCRIPTION) == "x"
    assert made.endswith(b"</a:RDF>")


@pytest.mark.parametrize("style", STYLES)
def test_what_is_added_is_about_the_same_image(style: str) -> None:
    """Programs refuse packets whose descriptions differ in that."""
    made = packet(described(style)).with_texts(NEW)
    abouts = {node.get(f"{{{RDF}}}about") for node in ET.fromstring(made).iter(f"{{{RDF}}}Description")}
    assert len(abouts) == 1


BOMB = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no well-formed XML: no element found"),
        (b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", "it holds no rdf:RDF"),
        (described("adobe")[:-20], "no well-formed XML"),
        (described("adobe").replace("Käse", "a & b"), "no well-formed XML"),
        (described("adobe").encode("latin-1"), "it is not utf-8 as it says"),
        (f'<!DOCTYPE x [<!ENTITY e0 "lol">{BOMB}]><x>&e9;</x>', "it has a DOCTYPE"),
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>', "it has a DOCTYPE"),
        ('<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><x/>', "it has a DOCTYPE"),
        ('<?xml version="1.0" encoding="no-such"?><x/>', "its encoding no-such"),
        ('<?xml version="1.0" encoding="utf-7"?><x/>', "its encoding utf-7"),
        (b"\xff\xfe<\0\0\xd8", "it is not utf-16-le as it says"),
    ],
)
def test_what_is_no_packet(content: bytes | str, reason: str) -> None:
    began = time.monotonic()
    with pytest.raises(PacketError, match=reason):
        packet(content)
    assert time.monotonic() - began < 1


def test_other_encodings_get_what_they_lack_as_references() -> None:
    text = described("darktable").replace("UTF-8", "ISO-8859-1")
    made = packet(text.encode("latin-1")).with_texts({DESCRIPTION: "Ä 🐈"})
    assert "Ä &#128008;".encode("latin-1") in made
    assert by_other_means(made, DESCRIPTION) == "Ä 🐈"


def test_deep_and_wide_packets_take_no_long_time() -> None:
    deep = "<a>" * 50_000 + "</a>" * 50_000
    wide = "<rdf:li x='y'/>" * 50_000
    inside = f"<dc:description>{deep}</dc:description><dc:subject><rdf:Bag>{wide}</rdf:Bag></dc:subject>"
    text = f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description {DC}>{inside}</rdf:Description></rdf:RDF>'
    began = time.process_time()
    assert not packet(text).can_hold(DESCRIPTION)
    assert time.process_time() - began < 3


TEXTS = st.text(st.characters(exclude_categories=()), max_size=200)


@given(first=TEXTS, second=TEXTS, style=st.sampled_from([*STYLES, "empty"]))
@example("]]>\r\n\t &amp; \x00\x0b\ufffe\ud800", "x" * 10_000, "adobe")
@example("'\"<!--", "\r\r\n.", "odd")
def test_any_text_is_read_back(first: str, second: str, style: str) -> None:
    """Also where it stands in an attribute, and again where it is replaced; what XML can't hold is replaced."""
    start = _EMPTY if style == "empty" else described(style)
    for text in (first, second):
        made = packet(start).with_texts(dict.fromkeys(NEW, text))
        assume(text.strip())
        expected = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
        assert {packet(made).text(one) for one in NEW} == {expected}
        assert {by_other_means(made, one) for one in NEW} == {expected}
        start = made.decode()
    attribute = f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description {DC} dc:description="."/></rdf:RDF>'
    assert by_other_means(packet(attribute).with_texts({DESCRIPTION: first}), DESCRIPTION) == re.sub(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", first
    )
