"""The model builder takes seconds: here each kind of graph is drawn once a run, whoever exports it."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchcap.export.graph import builder_process, decoder
from tests.shared import made_once

_run_builder = decoder._run_builder


@contextmanager
def drawn_once(folder: Path) -> Iterator[None]:
    """Inside, graphs that were drawn are kept in `folder` and taken wherever the builder would read the same again."""

    def take(places: list[Path]) -> str:
        read, results = places[0], places[1:3]

        def draw(kept: Path) -> None:
            try:
                _build_here(places)
            except Exception:  # noqa: BLE001 - the process of its own says it as the product does
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


def _build_here(places: list[Path]) -> None:
    """What `builder_process` does, in this process: that saves the seconds of its imports."""
    from onnxruntime_genai.models import builder  # noqa: PLC0415 - seconds, and not for every test

    drawing = builder.Qwen3VLTextModel
    loading = vars(sys.modules[drawing.load_weights.__module__])
    no_parent_to_end_with = SimpleNamespace(CDLL=lambda _name: SimpleNamespace(prctl=lambda *_: 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["builder_process", str(os.getppid()), *map(str, places)])
        patch.setattr(builder_process, "ctypes", no_parent_to_end_with)
        # It changes these for good; here they are put back.
        patch.setattr(drawing, "save_model", drawing.save_model)
        patch.setitem(loading, "Qwen3VLForConditionalGeneration", loading["Qwen3VLForConditionalGeneration"])
        builder_process.main()


def _digest(folder: Path) -> str:
    """Of all that the builder reads: the names and contents of the files, in no folder below."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
