"""Decodes the files of a folder one by one, each in a process of its own, and prints what memory each decode took.

    python -m tests.hostile.measure FOLDER MAX_IMAGE_PIXELS [NAME ...]

Names: only these files. One JSON object a line: the file's name, how it ended, and by how many bytes its decode raised
the resident memory, from the file's bytes in memory to its peak.
"""

import io
import json
import os
import sys
from pathlib import Path

from PIL import Image

from batchcap.core.errors import RowError
from batchcap.images.decode import decode


def main(folder: Path, max_pixels: int, names: list[str]) -> None:
    """Nothing large is decoded in this process: memory that it had freed would hide what a decode takes."""
    Image.init()
    file = io.BytesIO()
    Image.new("F", (8, 8)).save(file, "TIFF", compression="tiff_lzw")
    tiny = file.getvalue()
    for path in [folder / name for name in names] or sorted(path for path in folder.rglob("*") if path.is_file()):
        child = os.fork()
        if child == 0:
            print(json.dumps({"name": str(path.relative_to(folder)), **_measure(path, max_pixels, tiny)}), flush=True)
            os._exit(0)
        _pid, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"name": str(path.relative_to(folder)), "end": f"died: {status}", "bytes": 0}), flush=True)


def _measure(path: Path, max_pixels: int, tiny: bytes) -> dict[str, object]:
    encoded = path.read_bytes()
    decode(tiny, max_pixels)  # maps the code of NumPy and libtiff, which is no memory of the image's
    before = _memory_bytes("VmRSS")
    try:
        decode(encoded, max_pixels)
        end = "ok"
    except RowError as error:
        end = error.kind.value
    return {"end": end, "bytes": _memory_bytes("VmHWM") - before}


def _memory_bytes(name: str) -> int:
    """Of this process; the peak begins anew in a process that was forked."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
