"""Pages: their images are found as browsers find them, and all but `alt` attributes keeps its bytes."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchcap.outputs.html_page import Page, PageError

HERE = "/site/sub/page.html"


def page(text: str | bytes) -> Page:
    """A page in a folder of a site."""
    return Page(text.encode() if isinstance(text, str) else text, HERE)


def places(text: str) -> list[tuple[str, ...]]:
    """Where its images may lead."""
    return [image.places for image in page(text).images]


def filled(text: str | bytes, alt: str = "A <b>\"cat\" & 'dog'") -> bytes:
    """The page with one alt text for all images."""
    found = page(text)
    return found.with_alts(dict.fromkeys(found.images, alt))


ALT = 'alt="A &lt;b&gt;&quot;cat&quot; &amp; &#x27;dog&#x27;"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<img src=a.png>", f"<img {ALT} src=a.png>"),
        ("<IMG\n  SRC='a.png'\n/>", f"<IMG {ALT}\n  SRC='a.png'\n/>"),
        ("<img/>", f"<img {ALT}/>"),
        ('<img alt="" src="a.png">', f'<img {ALT} src="a.png">'),
        ("<![if !vml]><![foo bar]><img src=a><![endif]>", f"<![if !vml]><![foo bar]><img {ALT} src=a><![endif]>"),
        ("<img src=a><a '", f"<img {ALT} src=a><a '"),
        ("<img alt src=a>", f"<img {ALT} src=a>"),
        ("<img src=a alt= >", f"<img src=a {ALT}>"),
        ("<img src=a\n ALT = 'it > x' id=b>", f"<img src=a\n {ALT} id=b>"),
        ("<img src=a alt=x>", f"<img src=a {ALT}>"),
        ("<img data-alt=x title='alt=1' alt=x alt=y>", f"<img data-alt=x title='alt=1' {ALT} alt=y>"),
        ("é\r\n<p>🐈</p>\r<img src=a>\r\n\x00", f"é\r\n<p>🐈</p>\r<img {ALT} src=a>\r\n\x00"),
        ("<p><img src=a><img src=b>\n<img src=c></p>", f"<p><img {ALT} src=a><img {ALT} src=b>\n<img {ALT} src=c></p>"),
    ],
)
def test_an_alt_text_is_put_in(before: str, after: str) -> None:
    assert filled(before).decode() == after
    assert {image.alt for image in page(after).images} == {"A <b>\"cat\" & 'dog'"}


@pytest.mark.parametrize(
    "text",
    [
        "<!-- <img src=a.png> -->",
        "<!--[if IE]><img src=a.png><![endif]-->",
        "<script>x = '<img src=a.png>'</script>",
        "<style>/* <img src=a.png> */</style>",
        "<textarea><img src=a.png></textarea>",
        "<title><img src=a.png></title>",
        "<p title='<img src=a.png>'>",
        "&lt;img src=a.png&gt; <imgs src=a.png> <image src=a.png>",
        "<img src='a.png",
    ],
)
def test_what_is_no_image(text: str) -> None:
    assert page(text).images == ()
    assert filled(text) == text.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<img src=a.png>", "/site/sub/a.png"),
        ("<img src=' ../a%20b.png?v=1#x '>", "/site/a b.png"),
        ("<img src='/img/a&amp;b.png'>", "/img/a&b.png"),
        ("<img src=./x/../a.png>", "/site/sub/a.png"),
        ("<img src='caf%C3%A9.png'>", "/site/sub/café.png"),
        ("<img src='%ff.png'>", "/site/sub/\udcff.png"),
        ("<img src='a%23.png'>", "/site/sub/a#.png"),
        ("<base href='/other/'><img src=a.png>", "/other/a.png"),
        ("<base href='img/'><base href=no/><img src=a.png>", "/site/sub/img/a.png"),
    ],
)
def test_where_an_image_leads(text: str, expected: str) -> None:
    assert places(text) == [(expected,)]


@pytest.mark.parametrize(
    "text",
    [
        "<img src='https://example.org/a.png'>",
        "<img src='//example.org/a.png'>",
        "<img src='data:image/png;base64,AAAA'>",
        "<img src='http://[/a.png'>",
        "<img src=''>",
        "<img>",
        "<base href='https://example.org/'><img src=a.png>",
        "<img src='https://pages.invalid/a.png'>",
    ],
)
def test_an_image_that_is_elsewhere(text: str) -> None:
    assert places(text) == [()]


def test_images_with_several_files() -> None:
    text = (
        "<picture><source srcset='a,b.avif 1x, c.avif 2x'><img src=d.png srcset='e.png 480w,f.png 800w'></picture>"
        "<img srcset=g.png>"
    )
    names = [tuple(place.removeprefix("/site/sub/") for place in one) for one in places(text)]
    assert names == [("d.png", "e.png", "f.png", "a,b.avif", "c.avif"), ("g.png",)]


@pytest.mark.parametrize(
    ("codec", "head"),
    [
        ("utf-8", ""),
        ("utf-8-sig", "<meta charset=latin-1>"),
        ("cp1252", "<meta charset='ISO-8859-1'>"),
        ("shift_jis", '<META http-equiv="Content-Type" content="text/html; charset=Shift_JIS">'),
        ("utf-16", "<meta charset=utf-8>"),
        ("utf-8", "<meta charset=utf-16>"),
        ("utf-8", "<meta charset=no-such>"),
        ("koi8-r", "<meta charset=koi8-r>"),
    ],
)
def test_encodings(codec: str, head: str) -> None:
    """What an encoding lacks is written as a reference."""
    before = f"{head}<p>x</p><img src=a>".encode(codec)
    after = filled(before, "Ж 🐈 é")
    assert [image.alt for image in page(after).images] == ["Ж 🐈 é"]
    shown = after.decode(codec)
    assert shown.startswith(f"{head}<p>x</p><img alt=")
    assert ("&#128008;" in shown) is (not codec.startswith("utf"))


def test_bytes_that_are_not_of_the_encoding_stay() -> None:
    assert filled(b"\xe9 <img src=a> \x81", "x") == b'\xe9 <img alt="x" src=a> \x81'
    assert filled(b"<meta charset=cp1252>\x81 <img src=a>", "x") == b'<meta charset=cp1252>\x81 <img alt="x" src=a>'


@pytest.mark.parametrize("content", [b"\xff\xfe<", b"<meta charset=iso-2022-jp>\x1b$B\x1b(B\x1b(B<img>"])
def test_a_page_that_can_not_be_read(content: bytes) -> None:
    with pytest.raises(PageError, match="it is not"):
        page(content)


@given(
    st.lists(
        st.sampled_from(["<img src=a>", "<", ">", "'", '"', "alt", "=", " ", "/", "<p ", "é", "\n", "-->", "<!--"])
    )
)
@example(["<img src=a>", "<img ", "alt", "=", "'", ">", "'", ">"])
def test_any_page_keeps_all_else(pieces: list[str]) -> None:
    text = "".join(pieces)
    found = page(text)
    after = filled(text, "new").decode()
    again = page(after).images
    assert [image.alt for image in again] == ["new"] * len(found.images)
    place, expected = 0, ""
    for image in found.images:
        was = text[image.start : image.end]
        assert was == "" or was.startswith("alt")
        expected += text[place : image.start] + ('alt="new"' if was else ' alt="new"')
        place = image.end
    assert after == expected + text[place:]


@pytest.mark.parametrize(
    "piece", ["<img src=b>\n", "<a ", "<a '", "<!--", "<![CDATA[", "<![foo", "</", "<img alt='", "<img src=a alt", "&#"]
)
def test_large_pages_take_no_long_time(piece: str) -> None:
    began = time.process_time()
    filled("<p>x</p>\n<img src=a alt='" + "y" * 100_000 + "'>" + piece * 10_000)
    assert time.process_time() - began < 3
