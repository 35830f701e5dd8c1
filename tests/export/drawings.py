"""The model builder takes seconds: here each kind of graph is drawn once a run, whoever exports it."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchcap.export.graph import decoder
from tests.shared import made_once

_run_builder = decoder._run_builder


@contextmanager
def drawn_once(folder: Path) -> Iterator[None]:
    """Inside, graphs that were drawn are kept in `folder` and taken wherever the builder would read the same again."""

    def take(places: list[Path]) -> str:
        read, results = places[0], places[1:3]

        def draw(kept: Path) -> None:
            _run_builder(places)
            kept.mkdir()
            for path in results:
                shutil.move(path, kept / path.name)

        kept = made_once(folder / _digest(read), draw)
        for path in results:
            shutil.copyfile(kept / path.name, path)
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_run_builder", take)
        yield


@contextmanager
def drawn_anew() -> Iterator[None]:
    """Inside, the builder draws each time: for tests of what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_run_builder", _run_builder)
        yield


def _digest(folder: Path) -> str:
    """Of all that the builder reads: the names and contents of the files, in no folder below."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
