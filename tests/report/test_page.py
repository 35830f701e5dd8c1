"""The page: every image it should show, and nothing in it that names, captions or images could make it do."""

import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.core.errors import UsageError
from batchcap.core.records import ImageRow
from batchcap.core.sources import FileAt
from batchcap.model.bundle import Bundle
from batchcap.report import thumbnails
from batchcap.report.page import write_page
from batchcap.report.thumbnails import ThumbnailMaker
from batchcap.store.folder import JobFolder
from tests.e2e.command import assert_refused, batchcap
from tests.e2e.inputs import image

MARKUP = "<img src=x onerror=alert(1)>&amp;\x1b[2J\u202e.png"
NAMES = ("plain.png", MARKUP, '" onload="alert(1).png', "{{ 7 * 7 }}{% raw %}.png", "javascript:alert(1).png")


class Reader(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = page.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def caption(inputs: Path, output: Path, bundle: Bundle, *options: str) -> None:
    command = (
        "caption",
        inputs,
        "-o",
        output,
        "-m",
        bundle.folder,
        "--vision-backend",
        "onnx",
        "--max-new-tokens",
        "8",
    )
    assert batchcap(*command, *options).returncode == 0


def assert_inert(page: Reader) -> None:
    """No script, nothing loaded, nothing linked, and a policy that says so to the browser."""
    (policy,) = [one["content"] for one in page.of("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {tag for tag, _attributes in page.elements} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "dl", "dt", "dd", "div", "figure", "img"),
        *("figcaption", "p", "b", "span", "bdi", "details", "summary", "svg", "polyline", "footer"),
    }
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("href", "srcset") for name in attributes), (tag, attributes)
    assert all((one["src"] or "").startswith("data:image/jpeg;base64,") for one in page.of("img"))
    assert not set(page.source) & {"\x1b", "\u202e"}


@pytest.fixture(scope="module")
def job(tiny_bundle_int4: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "in").mkdir()
    for number, name in enumerate(NAMES):
        (folder / "in" / name).write_bytes(image(number))
    (folder / "in" / "broken <b>.png").write_bytes(image(0)[:50])
    caption(folder / "in", folder / "out", tiny_bundle_int4, "--prompt", "a=<u>Name it.</u>", "--prompt", "b=Why?")
    return folder / "out"


def test_hostile_names_are_text(job: Path, tmp_path: Path) -> None:
    page = Reader(write_page(job, tmp_path / "page.html"))
    assert_inert(page)
    assert len(page.of("figure")) == len(NAMES) + 1
    assert len(page.of("img")) == len(NAMES)
    for name in (*NAMES, "broken <b>.png", "<u>Name it.</u>"):
        assert name.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e") in page.text
    assert "49" not in re.findall(r"\d+", page.text), "a name was taken for a template"
    assert "corrupt: " in page.text


def test_hostile_captions_are_text(job: Path, tmp_path: Path) -> None:
    part = JobFolder(job).part_path(0)
    before = part.read_bytes()
    table = pq.read_table(part)
    evil = [f"<script>alert({row})</script>{{{{ 7 * 7 }}}}\x07" for row in range(len(table))]
    place = table.schema.get_field_index("caption_a")
    try:
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(evil)), part)
        page = Reader(write_page(job, tmp_path / "page.html"))
    finally:
        part.write_bytes(before)
    assert_inert(page)
    assert page.text.count("<script>alert(") == len(NAMES)
    assert "\\u0007" in page.text


def test_the_command_and_its_place(job: Path) -> None:
    done = batchcap("report", job)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{JobFolder(job).report_path}\n", "")
    for place in (".", job.parent / "not there" / "page.html"):
        refused = batchcap("report", job, "--to", place)
        assert_refused(refused, "with --to, name a file in an existing folder")
    for option in ("--images", "--pictures"):  # its name now and its name before
        assert batchcap("report", job, option, 0).returncode == 0, option
    absent = batchcap("report", job / "in")
    assert absent.returncode == 2
    assert "is not a job folder" in absent.stderr


def test_few_images_of_many(tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    """Of a Parquet job in several parts: first those that failed, up to half, then others from all over."""
    cells = [image(number)[: 40 if number % 3 == 0 else None] for number in range(40)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "in.parquet")
    caption(tmp_path / "in.parquet", tmp_path / "out", tiny_bundle_int4, "--rows-per-part", "8", "--limit", "39")
    odd = Reader(write_page(tmp_path / "out", images=12))
    assert _shown(odd) == [*range(12)], "this model writes nothing that looks well"
    for part in JobFolder(tmp_path / "out").part_paths():
        table = pq.read_table(part)
        place = table.schema.get_field_index("verdict")
        well = [None if status == "failed" else "ok" for status in table["status"].to_pylist()]
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(well)), part)
    page = Reader(write_page(tmp_path / "out", images=12))
    assert _shown(page)[:6] == [0, 3, 6, 7, 9, 12], "7 is one of those that are broken by themselves"
    assert (_shown(page)[6], _shown(page)[-1], len(_shown(page))) == (1, 38, 12)
    assert len(page.of("img")) == 6
    assert Reader(write_page(tmp_path / "out", images=0)).of("figure") == []
    (tmp_path / "in.parquet").unlink()
    assert Reader(write_page(tmp_path / "out", images=12)).of("img") == [], "captions are shown without the images"


def _shown(page: Reader) -> list[int]:
    return [int(number) for number in re.findall(r"in\.parquet:(\d+)", page.text)]


def test_odd_statistics_and_summaries_are_left_out(job: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (JobFolder(job).stats_path, JobFolder(job).summary_path)}
    try:
        texts = pa.table({"run": ["one"], "elapsed_s": ["now"], "rows": ["some"]})
        pq.write_table(texts, JobFolder(job).stats_path)
        JobFolder(job).summary_path.write_text("[1]")
        page = Reader(write_page(job, tmp_path / "page.html"))
    finally:
        for name, content in before.items():
            (job / name).write_bytes(content)
    assert page.of("svg") == []
    assert len(page.of("figure")) == len(NAMES) + 1


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a job folder"):
        write_page(tmp_path)


def test_an_image_that_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "_serve", _serve_badly)
    (tmp_path / "a.png").write_bytes(image(0))

    def row(name: str) -> ImageRow:
        return ImageRow(0, name, "", 0, FileAt(str(tmp_path / "a.png")))

    with ThumbnailMaker(10**6, timeout_s=5.0) as maker:
        assert maker.make(row("kills")) is None
        assert maker.make(row("well")) == "data:image/jpeg;base64,YQ=="
        maker._timeout_s = 0.5
        assert maker.make(row("hangs")) is None
        maker._timeout_s = 5.0
        assert maker.make(row("well")) == "data:image/jpeg;base64,YQ=="
        process = maker._process
    assert not process.is_alive()


def _serve_badly(connection: Any, _most: int) -> None:
    while True:
        row = connection.recv()
        if row.id != "well":
            os.kill(os.getpid(), signal.SIGKILL if row.id == "kills" else signal.SIGSTOP)
        connection.send(b"a")
