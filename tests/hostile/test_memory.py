"""What one decode takes at most: the number on the operations page holds for every image, sound or hostile."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.markdown import PROJECT, text_of
from tests.hostile.files import MAX_IMAGE_PIXELS, hostile_files
from tests.hostile.originals import originals
from tests.hostile.special import write_files
from tests.images.raws import dng, jpeg_preview, linear, sensor
from tests.images.samples import noise

SEED = 2026
MIB = 1 << 20
LARGE_PX = (640, 500)
# Decoders' own tables, and how finely the system counts.
MARGIN_BYTES = 4 * MIB
# What only the bytes decide, not the pixels: of each of these groups every file is measured, of the others a few.
MEASURED = ("bomb", "parts", "harmless", "hidden", "long", "metadata")
ONE_OF = 20
AGAIN = 3


def stated() -> tuple[int, int, int]:
    """Bytes a pixel, bytes beside them, and how many times the file, as the operations page says."""
    text = " ".join(text_of("docs/operations.md").split())
    found = re.search(r"takes at most (\d+) bytes a pixel and (\d+) MiB, .* up to (\d+) times", text)
    assert found
    return int(found[1]), int(found[2]) * MIB, int(found[3])


def measured(folder: Path, max_pixels: int, limit: Callable[[str], int]) -> dict[str, tuple[str, int]]:
    """How each file of a folder ended, and the bytes that its decode took.

    Pages that the kernel had taken away and gives back count, too: what is above its limit is measured again.
    """
    taken = _measured(folder, max_pixels)
    for _again in range(AGAIN):
        names = [name for name, (_end, used) in taken.items() if used > limit(name)]
        if not names:
            break
        taken |= {name: min(taken[name], now) for name, now in _measured(folder, max_pixels, *names).items()}
    return taken


def _measured(folder: Path, max_pixels: int, *names: str) -> dict[str, tuple[str, int]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.measure", str(folder), str(max_pixels), *names],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: (row["end"], row["bytes"]) for row in rows}


@pytest.mark.slow
def test_sound_images_take_what_is_stated(tmp_path: Path) -> None:
    bytes_a_pixel, _constant, _times = stated()
    for one in originals(SEED, LARGE_PX, orientations=[6]):
        (tmp_path / f"{one.name}.{one.suffix}").write_bytes(one.data)
    pixels = LARGE_PX[0] * LARGE_PX[1]
    limit = bytes_a_pixel * pixels + MARGIN_BYTES
    taken = measured(tmp_path, pixels, lambda _name: limit)
    assert len(taken) > 40
    assert {end for end, _used in taken.values()} == {"ok"}
    assert not {name: used / pixels for name, (_end, used) in taken.items() if used > limit}
    # Were it far less, the page would say too much.
    assert max(used for _end, used in taken.values()) > 0.7 * bytes_a_pixel * pixels


@pytest.mark.slow
def test_camera_raw_files_take_what_is_stated(tmp_path: Path) -> None:
    bytes_a_pixel, constant, _times = stated()
    files = {
        "preview.dng": dng([sensor(64, 48), jpeg_preview(noise(2000, 1500))]),
        "filters.dng": dng([sensor(2000, 1500)]),
        "linear.dng": dng([linear(2000, 1500)]),
        "small.dng": dng([sensor(1000, 1000)]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    limit = bytes_a_pixel * 2000 * 1500 + MARGIN_BYTES
    taken = measured(tmp_path, 2000 * 1500, lambda _name: limit)
    assert {end for end, _used in taken.values()} == {"ok"}
    assert not {name: used for name, (_end, used) in taken.items() if used > limit}
    assert taken["linear.dng"][1] > 0.7 * 23 * 2000 * 1500
    assert limit < constant


@pytest.mark.slow
def test_hostile_files_take_what_is_stated(tmp_path: Path) -> None:
    bytes_a_pixel, constant, times = stated()
    files = [
        file for place, file in enumerate(hostile_files(SEED)) if file.name.startswith(MEASURED) or place % ONE_OF == 0
    ]
    write_files(tmp_path, files)
    limits = {file.name: bytes_a_pixel * MAX_IMAGE_PIXELS + constant + times * len(file.data) for file in files}
    taken = measured(tmp_path, MAX_IMAGE_PIXELS, lambda name: limits[name])
    assert set(taken) == {file.name for file in files}
    assert not {name: end for name, (end, _used) in taken.items() if end.startswith("died")}
    assert not {name: used for name, (_end, used) in taken.items() if used > limits[name]}
    refused = {name: used for name, (end, used) in taken.items() if end == "too_large"}
    assert max(refused.values()) < MARGIN_BYTES  # refused before there is memory taken for it
