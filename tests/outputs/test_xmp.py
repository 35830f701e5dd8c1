"""XMP sidecars: new ones, those of other programs, whose text stays, and how another program reads them."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import Existing, GenerationConfig, JobConfig, OutputsConfig
from batchcap.core.errors import UsageError
from batchcap.outputs import files, xmp
from batchcap.outputs.convert import convert
from batchcap.outputs.form import Written
from batchcap.outputs.texts import Accessible
from batchcap.outputs.xmp import _OURS, ALT_TEXT, DESCRIPTION, EXTENDED, WRITER
from batchcap.outputs.xmp_packet import Packet
from batchcap.outputs.xmp_reader import Property
from tests.outputs.conftest import Run, with_outputs
from tests.outputs.xmp_samples import STYLES, described

WROTE = "batchcap 0.1.0 none int4"
CAPTION = "Caption of a.png."
TEXT = {DESCRIPTION: CAPTION, ALT_TEXT: CAPTION, EXTENDED: CAPTION, WRITER: WROTE}


def converted(config: JobConfig, form: str = "xmp", **settings: object) -> Written:
    """What was written."""
    (written,) = convert(Path(config.output), [form], OutputsConfig(**settings))  # type: ignore[arg-type]
    return written


def properties(path: Path) -> dict[Property, str]:
    """Our properties in a file."""
    packet = Packet(path.read_bytes(), _OURS)
    return {one: packet.text(one) for one in _OURS}


def names(folder: Path) -> list[str]:
    """The XMP files in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.[xX][mM][pP]"))


@pytest.mark.parametrize("existing", [Existing.SKIP, Existing.APPEND])
def test_a_kill_between_the_note_and_the_files(
    config: JobConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: Existing
) -> None:
    path = tmp_path / "in/a.xmp"
    path.write_text(described("adobe", "Mine."))
    run(config)

    def killed(_contents: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_many", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(config, existing=existing)
    assert path.read_text() == described("adobe", "Mine.")
    assert names(tmp_path / "in") == ["a.xmp"]
    converted(config, existing=existing)
    first = path.read_bytes()
    expected = "Mine." if existing is Existing.SKIP else f"Mine. {CAPTION}"
    assert properties(path)[DESCRIPTION] == expected
    converted(config, existing=existing)
    assert path.read_bytes() == first


def test_a_new_file_beside_each_image(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(config)
    written = converted(config)
    assert names(tmp_path / "in") == ["a.xmp", "sub/b.xmp", "sub/c d.xmp"]
    assert properties(tmp_path / "in/a.xmp") == TEXT
    assert written.to_text() == "xmp: 3 captions in 3 files beside the images; left out: 1 failed, 1 truncated"
    before = {name: (tmp_path / "in" / name).stat().st_mtime_ns for name in names(tmp_path / "in")}
    assert converted(config) == written
    assert {name: (tmp_path / "in" / name).stat().st_mtime_ns for name in names(tmp_path / "in")} == before


def test_names_with_the_extension(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in/a.xmp").write_text(described("adobe"))
    run(config)
    converted(config, full_names=True)
    assert names(tmp_path / "in") == ["a.png.xmp", "a.xmp", "sub/b.jpg.xmp", "sub/c d.webp.xmp"]
    assert (tmp_path / "in/a.xmp").read_text() == described("adobe")


@pytest.mark.parametrize("there", [["a.xmp"], ["a.png.xmp"], ["a.png.XMP"], ["a.xmp", "a.png.xmp"]], ids=" ".join)
def test_the_file_that_is_there_already_is_extended(
    config: JobConfig, run: Run, tmp_path: Path, there: list[str]
) -> None:
    """Whichever program it is of: Adobe's take the one name, darktable and digiKam the other."""
    for name in there:
        (tmp_path / "in" / name).write_text(described("darktable"))
    run(config)
    written = converted(config)
    assert [name for name in names(tmp_path / "in") if name.startswith("a")] == sorted(there)
    for name in there:
        assert properties(tmp_path / "in" / name) == TEXT
        assert "darktable:masks_history" in (tmp_path / "in" / name).read_text()
    assert (written.captions, written.files) == (3, 2 + len(there))


def test_one_file_of_two_names_is_extended_once(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """As on a memory card, where `.xmp` and `.XMP` are the same."""
    (tmp_path / "in/a.xmp").write_text(described("adobe"))
    (tmp_path / "in/a.XMP").hardlink_to(tmp_path / "in/a.xmp")
    run(config)
    assert converted(config).files == 3


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Existing.SKIP, "Mine"),
        (Existing.REPLACE, CAPTION),
        (Existing.APPEND, f"Mine, {CAPTION}"),
        (Existing.PREPEND, f"{CAPTION} Mine"),
    ],
)
def test_a_description_of_somebody(
    config: JobConfig, run: Run, tmp_path: Path, style: str, policy: Existing, expected: str
) -> None:
    """It stays, or what is asked for becomes of it; the rest is added; the writer is named of what is ours alone."""
    path = tmp_path / "in/a.xmp"
    path.write_text(described(style, "Mine"))
    writer = WROTE if policy is Existing.REPLACE else ""
    run(config)
    for _time in range(2):
        written = converted(config, existing=policy)
        assert properties(path) == {**TEXT, DESCRIPTION: expected, WRITER: writer}
        assert "Ein Bild" in path.read_text(), "other languages stay"
        assert (written.kept_texts, written.kept) == (policy is Existing.SKIP, 0)
        assert ("1 texts kept that somebody else wrote" in written.to_text()) is (policy is Existing.SKIP)


def test_a_writer_who_signed_already(config: JobConfig, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "in/a.xmp"
    path.write_text(
        described("adobe").replace("photoshop:Headline", 'photoshop:CaptionWriter="Jane" photoshop:Headline')
    )
    run(config)
    converted(config)
    assert properties(path) == {**TEXT, WRITER: "Jane"}
    converted(config, existing=Existing.REPLACE)
    assert properties(path) == TEXT


@pytest.mark.parametrize("policy", list(Existing))
def test_a_file_that_another_program_wrote_again(
    config: JobConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Existing
) -> None:
    """Our own texts in it are known again and follow the captions; what somebody changed is theirs."""
    path = tmp_path / "in/a.xmp"
    run(config)
    converted(config)
    texts = {**TEXT, ALT_TEXT: "Edited"}
    path.write_bytes(Packet(described("adobe").encode(), _OURS).with_texts(texts))
    for caption in ("New.", "Newer."):
        answer = Accessible(caption, caption)
        monkeypatch.setattr(xmp, "accessible", lambda _answers, _letters, answer=answer: answer)
        for _time in range(2):
            converted(config, existing=policy)
            alts = {
                Existing.REPLACE: caption,
                Existing.APPEND: f"Edited, {caption}",
                Existing.PREPEND: f"{caption} Edited",
            }
            expected = {DESCRIPTION: caption, ALT_TEXT: alts.get(policy, "Edited"), EXTENDED: caption, WRITER: WROTE}
            assert properties(path) == expected
            assert 'xmp:Rating="4"' in path.read_text()


def test_a_file_that_is_no_xmp_is_left_alone(
    config: JobConfig, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in/a.xmp").write_text("<x>")
    run(config)
    for policy in (Existing.SKIP, Existing.REPLACE):
        caplog.clear()
        written = converted(config, existing=policy)
        assert (written.captions, written.kept) == (2, 1)
        assert (tmp_path / "in/a.xmp").read_text() == "<x>"
        (record,) = caplog.records
        assert "in/a.xmp is left as it is: it is no well-formed XML" in record.getMessage()


def test_existing_files_stop_the_job_before_any_work(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in/sub/b.jpg.xmp").write_text(described("darktable"))
    asked = with_outputs(config, also=("xmp",), existing=Existing.FAIL)
    with pytest.raises(UsageError, match=r"1 caption files are there already.*sub/b\.jpg\.xmp"):
        run(asked, dies_after=0)
    (tmp_path / "in/sub/b.jpg.xmp").unlink()
    run(asked)
    (tmp_path / "in/a.xmp").write_text((tmp_path / "in/a.xmp").read_text().replace("<x:xmpmeta", "<!-- --><x:xmpmeta"))
    converted(config, existing=Existing.FAIL)
    assert properties(tmp_path / "in/a.xmp") == TEXT


def test_several_prompts(config: JobConfig, run: Run, tmp_path: Path) -> None:
    prompts = {"tags": "Tags?", "alt": "Short?", "description": "Long?", "mood": "Mood?"}
    config = replace(config, generation=GenerationConfig(prompt=prompts))
    run(config)
    converted(config)
    assert properties(tmp_path / "in/a.xmp") == {
        DESCRIPTION: "description of a.png.",
        ALT_TEXT: "alt of a.png.",
        EXTENDED: "description of a.png.",
        WRITER: WROTE,
    }


def test_a_long_alt_text_is_cut(config: JobConfig, run: Run, tmp_path: Path) -> None:
    long = tmp_path / "in" / f"{'word ' * 30}.png"
    long.write_bytes((tmp_path / "in/a.png").read_bytes())
    run(config)
    converted(config, max_alt_letters=40)
    found = properties(long.with_suffix(".xmp"))
    assert found[ALT_TEXT] == "Caption of word word word word word…"
    assert found[EXTENDED] == f"Caption of {long.name}."


def test_in_a_tree_of_their_own(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.png.xmp").write_text(described("digikam"))
    run(config)
    converted(config, f"xmp:{tmp_path / 'tree'}")
    assert names(tmp_path / "tree") == ["a.png.xmp", "sub/b.xmp", "sub/c d.xmp"]
    assert names(tmp_path / "in") == []


def read_by_exiftool(path: Path) -> dict[str, str]:
    """Our properties by ExifTool's names, and what it thinks of the file."""
    asked = ["-j", "-XMP-dc:Description", "-XMP-iptcCore:all", "-XMP-photoshop:CaptionWriter", "-validate"]
    (found,) = json.loads(subprocess.run(["exiftool", *asked, path], capture_output=True, check=True).stdout)
    return dict(found)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="ExifTool is not installed (libimage-exiftool-perl)")
@pytest.mark.parametrize("style", ["new", "adobe", "darktable", "digikam", "exiftool"])
def test_exiftool_reads_them(config: JobConfig, run: Run, tmp_path: Path, style: str) -> None:
    path = tmp_path / "in/a.xmp"
    faults = "OK"
    if style != "new":
        path.write_text(described(style))
        faults = read_by_exiftool(path)["Validate"]
    run(config)
    converted(config)
    found = read_by_exiftool(path)
    assert {name: found.get(name) for name in ("Description", "AltTextAccessibility", "ExtDescrAccessibility")} == {
        "Description": CAPTION,
        "AltTextAccessibility": CAPTION,
        "ExtDescrAccessibility": CAPTION,
    }
    assert found["CaptionWriter"] == WROTE
    assert found["Validate"] == faults
