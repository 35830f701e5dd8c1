"""What may lie in a folder of images and is no ordinary file, or has no ordinary name."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from batchcap.core.errors import ErrorKind
from tests.hostile.files import HostileFile
from tests.hostile.originals import Original

ODD_NAMES = (
    b"caf\xe9.png",
    b"\xff\xfe\x80.png",
    b"cut-\xf0\x9f\x98.png",
    b"new\nline.png",
    b"tab\tand\x1b[31mcolour\x07.png",
    b"-o --help.png",
    b"%s%n{}'\"$(id)`id`.png",
    b"dots...png",
    b" blanks .png",
    "\u202eright to left\u202c.png".encode(),
    "e\u0301 and \u00e9.png".encode(),
    "\U0001f600\u200d.png".encode(),
    b"x" * 251 + b".png",
)


def write_files(folder: Path, files: list[HostileFile]) -> dict[bytes, frozenset[ErrorKind | None]]:
    """Write the files into the folder: what each path inside of it may end with."""
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
    return {os.fsencode(file.name): file.ends for file in files}


def write_special(folder: Path, image: Original) -> dict[bytes, frozenset[ErrorKind | None]]:
    """Make pipes, sockets, devices, links, folders and odd names: what each path inside of the folder ends with."""
    special = folder / "special"
    special.mkdir(parents=True)
    ends = {f"special/{name}".encode(): kind for name, kind in _make_files(special, image).items()}
    (folder / "names").mkdir()
    for name in ODD_NAMES:
        (folder / "names" / os.fsdecode(name)).write_bytes(image.data)
        ends[b"names/" + name] = None
    return {path: frozenset({kind}) for path, kind in ends.items()}


def _make_files(special: Path, image: Original) -> dict[str, ErrorKind | None]:
    """The special files and what becomes of each; folders and links to them are none."""
    (special / "itself.png").symlink_to("itself.png")
    (special / "there.png").symlink_to("back.png")
    (special / "back.png").symlink_to("there.png")
    (special / "around").symlink_to(".")  # a folder in a circle: what is in it is taken once
    (special / "nowhere.png").symlink_to("/nowhere/at/all.png")
    (special / "below-a-file.png").symlink_to("picture.png/below.png")
    (special / "zero.png").symlink_to("/dev/zero")
    (special / "null.png").symlink_to("/dev/null")
    (special / "memory.png").symlink_to("/proc/self/mem")
    (special / "picture.png").write_bytes(image.data)
    (special / "link.png").symlink_to("picture.png")
    (special / "hard-link.png").hardlink_to(special / "picture.png")
    (special / "folder.png").mkdir()
    (special / "folder.png" / "inside.png").write_bytes(image.data)
    (special / "locked.png").write_bytes(image.data)
    (special / "locked.png").chmod(0)
    (special / "empty.parquet.png").touch()
    os.mkfifo(special / "pipe.png")
    os.mknod(special / "socket.png", 0o600 | stat.S_IFSOCK)
    (special / "huge.png").touch()
    os.truncate(special / "huge.png", (1 << 30) + 1)  # takes no room on the disk
    ends: dict[str, ErrorKind | None] = {
        **dict.fromkeys(("picture.png", "link.png", "hard-link.png", "folder.png/inside.png")),
        **dict.fromkeys(("nowhere.png", "below-a-file.png"), ErrorKind.MISSING),
        **dict.fromkeys(("itself.png", "there.png", "back.png"), ErrorKind.UNREADABLE),
        **dict.fromkeys(
            ("zero.png", "null.png", "memory.png", "locked.png", "pipe.png", "socket.png"), ErrorKind.UNREADABLE
        ),
        "empty.parquet.png": ErrorKind.NOT_AN_IMAGE,
        "huge.png": ErrorKind.TOO_LARGE,
    }
    with suppress(PermissionError):  # only root makes devices
        os.mknod(special / "device.png", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        ends["device.png"] = ErrorKind.UNREADABLE
    return ends
