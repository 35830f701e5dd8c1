"""Names and captions from anywhere: nothing of them steers a terminal, forges a line of ours, or breaks JSON."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.core.records import Shard
from batchcap.core.text import harmless, shown_name
from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from batchcap.store.parts import write_part
from tests.e2e.command import batchcap
from tests.e2e.inputs import image
from tests.store.records import caption_row

# Clear the screen, set the title, a one-character CSI, turn the text around, forge a line, ring.
HOSTILE = (
    "\x1b[2J",
    "\x1b]0;owned\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "x\n12:00:00 all is well",
    "\x07",
    "\r\x08\x7f",
    "\u2028",
)
FORMULA = '=HYPERLINK("http://evil","click")'
MARKUP = "<script>alert(1)</script>"


def assert_harmless(text: str) -> None:
    assert not set(text) & {"\x1b", "\x9b", "\x07", "\x08", "\x7f", "\r", "\u202e", "\u2028"}, ascii(text)


@given(st.text())
def test_what_is_shown_steers_nothing_and_is_json_still(text: str) -> None:
    shown = harmless(text)
    assert_harmless(shown)
    assert all(one.isprintable() or one in "\n\t" or ord(one) > 0x9F for one in shown)
    inside = harmless(json.dumps(text.encode(errors="ignore").decode(), ensure_ascii=False))
    assert json.loads(inside) == text.encode(errors="ignore").decode()
    assert len(shown_name(text).splitlines()) <= 1


@pytest.mark.parametrize("text", ["naïve café", "写真", "👩‍👧 and dog", "a\tb\nc", "עברית"])
def test_words_of_all_languages_stay(text: str) -> None:
    assert harmless(text) == text


def test_names_of_files(tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    """As images, as files skipped by their extension, as folders that can't be looked into."""
    for number, name in enumerate((*HOSTILE, FORMULA, MARKUP)):
        name = name.replace("/", "_")  # noqa: PLW2901 - no name has one
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / f"{name}.png").write_bytes(image(number))
        (tmp_path / "in" / f"file.{name}").touch()
    (tmp_path / "in" / HOSTILE[0]).chmod(0)
    options = ("-m", tiny_bundle_int4.folder, "--vision-backend", "onnx", "--max-new-tokens", "4", "--show", "99")
    try:
        done = batchcap("caption", tmp_path / "in", "-o", tmp_path / "out", *options)
    finally:
        (tmp_path / "in" / HOSTILE[0]).chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "other files skipped" in done.stderr
    assert "can't look into the folder" in done.stderr
    missing = batchcap("caption", tmp_path / f"absent{''.join(HOSTILE)}", "-o", tmp_path / "other")
    assert missing.returncode == 2
    status = batchcap("status", tmp_path / "out", "--captions", "99")
    for text in (done.stdout, done.stderr, missing.stderr, status.stdout):
        assert_harmless(text)
        assert not any(line.startswith("12:00:00") for line in text.splitlines())
    assert len(done.stderr.splitlines()) < 20


def test_captions_and_ids(tmp_path: Path) -> None:
    """Whatever a model writes or an id column holds: on the terminal it is text; in the part it is what it was."""
    folder = JobFolder.open_or_create(tmp_path / "out")
    texts = (*HOSTILE, FORMULA, MARKUP)
    rows = [caption_row(number, caption=text) for number, text in enumerate(texts)]
    write_part(folder.part_path(0), Shard(0, 0, len(rows)), rows, None, {})
    shutil.copy(Path(__file__), folder.summary_path)  # no summary at all
    from batchcap.report.status import first_captions  # noqa: PLC0415

    shown = first_captions(tmp_path / "out", 99)
    assert_harmless(shown)
    assert len(shown.splitlines()) == len(texts)
    assert FORMULA in shown
    assert MARKUP in shown
