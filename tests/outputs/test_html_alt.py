"""Alt texts in the pages of a site: which images get one, where the pages are written, and that the site stays."""

import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.commands.jobfile import load_job_file
from batchcap.config import Existing, GenerationConfig, InputConfig, JobConfig, OutputsConfig, form_fault
from batchcap.core.errors import StorageError, UsageError
from batchcap.outputs import files, html_alt
from batchcap.outputs.convert import convert
from batchcap.outputs.form import Written
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, parquet_job, with_outputs

PAGE = """<!DOCTYPE html>\r
<img src="a.png"><img src="sub/c%20d.webp?x" alt="">
<img alt="Mine" src="/sub/b.jpg"><img src="cut.png"><img src="http://x/a.png">
"""


@pytest.fixture
def site(config: JobConfig, tmp_path: Path) -> Path:
    """A site whose folder is that of the images."""
    _ = config
    (tmp_path / "in/index.html").write_bytes(PAGE.encode())
    (tmp_path / "in/sub/b.HTM").write_text("<img src='../a.png'>")
    (tmp_path / "in/sub/none.html").write_text("<p>nothing</p>")
    return tmp_path / "in"


def converted(config: JobConfig, site: Path, **settings: object) -> Written:
    """What was written to `pages`."""
    where = Path(config.output).parent / "pages"
    outputs = OutputsConfig(html_pages=str(site), **settings)  # type: ignore[arg-type]
    (written,) = convert(Path(config.output), [f"html-alt:{where}"], outputs)
    return written


def pages(folder: Path) -> dict[str, str]:
    """All files below it."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in sorted(found)}


def test_a_kill_between_the_note_and_the_pages(
    config: JobConfig, run: Run, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there afterwards is known as batchcap's, whichever it is."""
    run(config)
    converted(config, site)
    before = pages(tmp_path / "pages")

    def killed(_contents: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_many", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(config, site, existing=Existing.REPLACE)
    assert pages(tmp_path / "pages") == before
    assert converted(config, site, existing=Existing.APPEND).kept == 0


def test_missing_alt_texts_are_filled(config: JobConfig, run: Run, site: Path, tmp_path: Path) -> None:
    run(config)
    for _time in range(2):
        written = converted(config, site)
        assert pages(tmp_path / "pages") == {
            "index.html": PAGE.replace('<img src="a', '<img alt="Caption of a.png." src="a'),
            "sub/b.HTM": "<img alt=\"Caption of a.png.\" src='../a.png'>",
        }
        assert written.to_text() == (
            f"html-alt: 2 captions in 2 files in {tmp_path / 'pages'}; left out: 1 failed, 1 truncated; "
            "2 texts kept that somebody else wrote; 2 images of pages without a caption"
        )
    assert (site / "index.html").read_bytes() == PAGE.encode()
    assert sorted(path.name for path in site.rglob("*.[hH]*")) == ["b.HTM", "index.html", "none.html"]


@pytest.mark.parametrize(
    ("policy", "mine"),
    [
        (Existing.FAIL, "Mine"),
        (Existing.REPLACE, "Caption of sub/b.jpg."),
        (Existing.APPEND, "Mine, Caption of sub/b.jpg."),
        (Existing.PREPEND, "Caption of sub/b.jpg. Mine"),
    ],
)
def test_alt_texts_that_are_there(
    config: JobConfig, run: Run, site: Path, tmp_path: Path, policy: Existing, mine: str
) -> None:
    """An empty one is meant: it says that the image is decoration."""
    run(config)
    converted(config, site, existing=policy)
    found = (tmp_path / "pages/index.html").read_text()
    empty = "Caption of sub/c d.webp." if policy is Existing.REPLACE else ""
    assert f'<img src="sub/c%20d.webp?x" alt="{empty}">' in found
    assert f'<img alt="{mine}" src="/sub/b.jpg">' in found


def test_images_outside_of_the_site_and_behind_links(config: JobConfig, run: Run, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "photos").symlink_to(tmp_path / "in/sub")
    (site / "x.html").write_text("<img src=../in/a.png><img src='/photos/b.jpg'><img src='../in/%00'><img src=/>")
    run(config)
    converted(config, site)
    assert pages(tmp_path / "pages") == {
        "x.html": '<img alt="Caption of a.png." src=../in/a.png><img alt="Caption of sub/b.jpg." src=\'/photos/b.jpg\'>'
        "<img src='../in/%00'><img src=/>"
    }


def test_several_prompts_and_a_limit(config: JobConfig, run: Run, site: Path, tmp_path: Path) -> None:
    config = replace(config, generation=GenerationConfig(prompt={"long": "Long?", "short": "Short?"}))
    run(config)
    converted(config, site, max_alt_letters=20)
    assert 'alt="short of a.png."' in pages(tmp_path / "pages")["index.html"]


def test_images_that_are_named_in_a_table(config: JobConfig, run: Run, site: Path, tmp_path: Path) -> None:
    """Paths lead to files; images inside of the table have no place in a page."""
    write_table(tmp_path / "list.parquet", {"image": [str(site / "a.png")], "name": ["x.png"]})
    run(replace(config, input=InputConfig((str(tmp_path / "list.parquet"),), id_column="name")))
    assert converted(config, site).captions == 2
    assert 'alt="Caption of x.png."' in pages(tmp_path / "pages")["index.html"]
    config = parquet_job(replace(config, output=str(tmp_path / "out2")), tmp_path)
    run(config)
    assert converted(config, site).unplaced == 2


def test_while_the_job_runs(config: JobConfig, run: Run, site: Path, tmp_path: Path) -> None:
    asked = with_outputs(config, also=(f"html-alt:{tmp_path / 'pages'}",), html_pages=str(site))
    message = run(asked).message
    assert "html-alt: 2 captions in 2 files" in message
    assert len(pages(tmp_path / "pages")) == 2


def test_pages_of_somebody_else_are_kept(config: JobConfig, run: Run, site: Path, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/index.html").write_text("mine")
    run(config)
    assert converted(config, site).kept == 1
    assert pages(tmp_path / "pages")["index.html"] == "mine"
    with pytest.raises(UsageError, match=r"pages/index\.html is there already"):
        converted(config, site, existing=Existing.FAIL)
    assert converted(config, site, existing=Existing.REPLACE).kept == 0
    converted(config, site)
    (tmp_path / "pages/index.html").write_text("edited")
    assert converted(config, site).kept == 1


def test_a_page_that_can_not_be_read(
    config: JobConfig, run: Run, site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (site / "index.html").write_bytes(b"\xff\xfe<")
    (site / "gone.html").symlink_to(site / "nowhere")
    run(config)
    converted(config, site)
    assert list(pages(tmp_path / "pages")) == ["sub/b.HTM"]
    assert [
        record.getMessage().split(" is left as it is: ")[1] for record in caplog.records if "page" in record.msg
    ] == [
        "No such file or directory",
        "it is not utf-16-le, as it says",
    ]


@pytest.mark.parametrize(
    ("where", "pages"), [("in", "in"), ("in/new", "in"), (".", "in"), ("x", "none"), ("file", "in")]
)
def test_folders_that_can_not_be(config: JobConfig, run: Run, tmp_path: Path, where: str, pages: str) -> None:
    (tmp_path / "file").touch()
    run(config)
    with pytest.raises(UsageError, match=r"lie in one another|is no folder"):
        convert(Path(config.output), [f"html-alt:{tmp_path / where}"], OutputsConfig(html_pages=str(tmp_path / pages)))


def test_what_has_to_be_named(config: JobConfig, run: Run, tmp_path: Path) -> None:
    assert form_fault("html-alt") == form_fault("html-alt:") == "names no folder for the pages: write html-alt:FOLDER"
    asked = with_outputs(config, also=(f"html-alt:{tmp_path / 'x'}",))
    with pytest.raises(UsageError, match="add --html-pages FOLDER"):
        run(asked, dies_after=0)


@pytest.mark.parametrize("place", ["folder", "table"])
def test_no_room_for_temporary_files(
    config: JobConfig, run: Run, site: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def is_full(_path: Path) -> bytes:
        raise sqlite3.OperationalError("database or disk is full")

    run(config)
    if place == "folder":
        monkeypatch.setattr(tempfile, "tempdir", str(site / "nowhere"))
    else:
        monkeypatch.setattr(html_alt, "_key", is_full)
    with pytest.raises(StorageError, match="set TMPDIR to another folder"):
        converted(config, site)


def test_a_job_file_leads_from_its_folder(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        'output = "out"\nmodel = "demo"\n[input]\ninputs = ["in"]\n'
        '[outputs]\nalso = ["html-alt:new"]\nhtml_pages = "site"\n'
    )
    outputs = load_job_file(job).outputs
    assert (outputs.also, outputs.html_pages) == ((f"html-alt:{tmp_path / 'new'}",), str(tmp_path / "site"))
