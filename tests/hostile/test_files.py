"""Every hostile file becomes an image or a row with a kind: no other exception, no word on stderr."""

import os
from pathlib import Path

import pytest

from batchcap.config import VisionConfig
from batchcap.core.errors import ErrorKind, RowError
from batchcap.core.records import ImageRow
from batchcap.core.sources import Bytes, FileAt
from batchcap.export.quality.images import load_patches
from tests.hostile.files import MAX_IMAGE_PIXELS, HostileFile, hostile_files
from tests.hostile.originals import originals
from tests.hostile.special import write_special
from tests.images.samples import GEOMETRY, SETTINGS

SEED = 2026
VISION = VisionConfig(max_visual_tokens=8, max_image_pixels=MAX_IMAGE_PIXELS)
MIN_FILES = 1000


@pytest.fixture(scope="module")
def files() -> list[HostileFile]:
    """The hostile folder's files."""
    return hostile_files(SEED)


def end_of(data: bytes | None = None, path: Path | None = None) -> ErrorKind | None:
    """The kind of failure an image ends with; None for an image that the model can be shown."""
    row = ImageRow(0, "id", "source", 0, Bytes(data or b"") if path is None else FileAt(str(path)))
    try:
        patches = load_patches(row, GEOMETRY, SETTINGS, VISION)
    except RowError as error:
        return error.kind if error.message else ErrorKind.INTERNAL
    assert 0 < len(patches.values) <= VISION.max_visual_tokens * GEOMETRY.merge_size**2
    return None


def test_the_files_are_many_and_the_same_for_the_same_seed(files: list[HostileFile]) -> None:
    assert len(files) >= MIN_FILES
    assert len({file.name for file in files}) == len(files)
    assert hostile_files(SEED) == files
    assert hostile_files(SEED + 1) != files


def test_every_file_ends_as_it_may(files: list[HostileFile], capfd: pytest.CaptureFixture[str]) -> None:
    ends = {file.name: end_of(file.data) for file in files}  # any other error fails the test
    wrong = {file.name: ends[file.name] for file in files if ends[file.name] not in file.ends}
    assert not wrong
    assert capfd.readouterr() == ("", "")
    # A cut at every structure finds both: what was lost mattered, and what was lost was only the end's mark.
    for group in ("cut", "flipped"):
        found = [end for name, end in ends.items() if name.startswith(f"{group}/")]
        assert {None, ErrorKind.CORRUPT} <= set(found), group


def test_special_files_end_as_they_must(tmp_path: Path) -> None:
    wrong = {}
    for name, ends in write_special(tmp_path, originals(SEED)[1]).items():
        if name.endswith(b"locked.png") and os.geteuid() == 0:  # root reads everything
            continue
        end = end_of(path=tmp_path / os.fsdecode(name))
        if end not in ends:
            wrong[name] = end
    assert not wrong
