"""Owns the peers' virtual environments: made once, and anew when what belongs in them changes."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from batchcap.core import offline

STAMP = ".installed"
REASON_LINES = 3


class MissingPeerError(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer's environment holds.

    Attributes:
        requirements: installed with what they need.
        bare_requirements: installed after them, without what they say they need.
        source: a requirement to be built from its source distribution, which stays beside the environment.
        settings: environment variables of the installation, such as compiler flags.
    """

    requirements: tuple[str, ...]
    bare_requirements: tuple[str, ...] = ()
    source: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    def make(self, folder: Path) -> Path:
        """Make it in `folder` unless it is there; returns its Python.

        Raises:
            MissingPeerError: pip failed.
        """
        place = folder / ".venv"
        python, stamp = place / "bin" / "python", place / STAMP
        if stamp.exists() and stamp.read_text(encoding="utf-8") == repr(self):
            return python
        shutil.rmtree(place, ignore_errors=True)
        for archive in folder.glob("*.tar.gz"):
            archive.unlink()
        run_logged([sys.executable, "-m", "venv", str(place)], folder)
        run_logged(self._pip(python, *self.requirements), folder)
        if self.bare_requirements:
            run_logged(self._pip(python, "--no-deps", *self.bare_requirements), folder)
        if self.source:
            run_logged([str(python), *_download(self.source, folder)], folder)
            run_logged(self._pip(python, str(source_archive(folder))), folder, dict(self.settings))
        stamp.write_text(repr(self), encoding="utf-8")
        return python

    @staticmethod
    def _pip(python: Path, *words: str) -> list[str]:
        return [str(python), "-m", "pip", "install", "--quiet", *words]


def _download(source: str, folder: Path) -> list[str]:
    name = source.partition("==")[0]
    return ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name, "--dest", str(folder), source]


def source_archive(folder: Path) -> Path:
    """The source distribution that the environment was built from."""
    return next(folder.glob("*.tar.gz"))


def run_logged(command: list[str], folder: Path, settings: dict[str, str] | None = None) -> None:
    """Run one step of the preparation; its output goes to `prepare.log`.

    Raises:
        MissingPeerError: it failed; with the last lines it wrote.
    """
    log = folder / "prepare.log"
    print(f"  {' '.join(command)}", flush=True)
    with log.open("a", encoding="utf-8") as stream:
        start = stream.tell()
        stream.write(f"\n$ {' '.join(command)}\n")
        stream.flush()
        code = subprocess.call(command, stdout=stream, stderr=stream, env=offline.environment() | (settings or {}))
    if code:
        with log.open(encoding="utf-8", errors="replace") as stream:
            stream.seek(start)
            raise MissingPeerError(f"`{Path(command[0]).name} …` ended with {code}: {last_lines(stream.read())}")


def last_lines(text: str) -> str:
    """The end of an output in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-REASON_LINES:])[-400:]
