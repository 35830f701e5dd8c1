"""README.md and the guides by the letter: their commands run, then their Python snippets read what came out.

The checkpoint that a reader brings along is a tiny random one here; all else is as written.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from batchcap.store.folder import JobFolder
from tests.docs.markdown import PROJECT, blocks, text_of
from tests.e2e.shell import TIMEOUT_S, Shell, read_captions
from tests.shared import linked_copy

NOT_RUN = ("make ", "pip install ")
GUIDES = ("README.md", "docs/user-guide.md", "docs/file-formats.md")
IMAGES = ("sizes/96x96.jpg", "sizes/131x257.jpg", "names/two words.jpg")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, demo_cache: Path) -> Shell:
    """A folder like the project's for someone who has a checkpoint, three images and used the demo model before."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "sample_data").symlink_to(PROJECT / "sample_data")
    (folder / "PATH" / "TO").mkdir(parents=True)
    (folder / "PATH" / "TO" / "Qwen3-VL-2B-Instruct").symlink_to(tiny_checkpoint)
    images = folder / "home" / "Pictures"
    images.mkdir(parents=True)
    for name in IMAGES:
        (images / Path(name).name).symlink_to(PROJECT / "sample_data" / name)
    return Shell(folder, linked_copy(demo_cache, folder / "cache"), {"HOME": str(folder / "home")})


@pytest.fixture(scope="module")
def outputs(reader: Shell) -> dict[str, str]:
    """What each of the README's commands printed, run in turn."""
    lines = [line for block in blocks(text_of("README.md"), "sh") for line in block.splitlines() if line]
    printed = {}
    for line in lines:
        if not line.startswith(NOT_RUN):
            done = reader.run(line)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            printed[line.partition("#")[0].strip()] = done.stdout
    return printed


def test_the_first_screen_names_both_ways() -> None:
    first_screen = "\n".join(text_of("README.md").splitlines()[:24])
    for words in ("make demo", "make test", "pip install .", "batchcap caption "):
        assert words in first_screen


def test_the_demo_shows_images_and_captions(outputs: dict[str, str], reader: Shell) -> None:
    lines = outputs["batchcap caption sample_data --model demo --output demo-output --show 12"].splitlines()
    assert len(lines) == 13
    table = read_captions(reader.folder / "demo-output").slice(0, 12).to_pylist()
    for line, row in zip(lines[:-1], table, strict=True):
        assert line.startswith(row["id"])
        shown = line.removeprefix(row["id"]).strip()
        assert shown
        assert row["caption"] == shown or (shown.endswith("…") and row["caption"].startswith(shown[:-1]))
    assert lines[-1].endswith(": demo-output/part-00000.parquet")


def test_own_images_are_captioned_with_an_own_checkpoint(outputs: dict[str, str], reader: Shell) -> None:
    assert len(outputs) == 5
    table = read_captions(reader.folder / "captions")
    assert sorted(table["id"].to_pylist()) == sorted(Path(name).name for name in IMAGES)
    assert "3 of 3 done" in outputs["batchcap status captions"]
    assert outputs["batchcap report captions"] == "captions/__batchcap/report.html\n"


def test_the_job_folder_is_what_the_readme_draws(outputs: dict[str, str], reader: Shell) -> None:
    (drawing,) = [block for block in blocks(text_of("README.md"), "") if block.startswith("captions/\n")]
    names = [line.split()[0] for line in drawing.splitlines()[1:]]
    assert names == ["part-00000.parquet", "__batchcap/", "summary.json", "stats.parquet", "…"]
    folder = JobFolder(reader.folder / "captions")
    assert [folder.part_path(0).name, f"{folder.state_path.name}/"] == names[:2]
    for path in (folder.part_path(0), folder.summary_path, folder.stats_path):
        assert path.exists()
    assert folder.summary_path.parent == folder.stats_path.parent == folder.state_path


@pytest.mark.parametrize(
    ("page", "snippet"),
    [(page, snippet) for page in GUIDES for snippet in blocks(text_of(page), "python")],
    ids=lambda value: str(value)[:30].replace("\n", " "),
)
def test_snippets_run_on_what_came_out(page: str, snippet: str, outputs: dict[str, str], reader: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=reader.folder,
        env=reader.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
