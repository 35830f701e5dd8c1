"""What exports have in common is made once a run: each kind of graph, and of each checkpoint all but the decoder."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchcap.export import export
from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.graph import builder_process, decoder
from tests.shared import made_once

_run_builder, _write_parts, _sync = decoder._run_builder, export.write_parts, export._sync
_LARGE_BYTES = 64 << 20


@contextmanager
def drawn_once(folder: Path) -> Iterator[None]:
    """Inside, what was made is kept in `folder` and taken wherever the same files would be read again."""

    def take_parts(checkpoint: Checkpoint, bundle: Path) -> None:
        if checkpoint.nbytes > _LARGE_BYTES:
            _write_parts(checkpoint, bundle)
            return
        kept = folder / f"parts-{_digest(checkpoint.folder)}"
        if not kept.exists():
            _write_parts(checkpoint, bundle)
            made_once(kept, lambda unfinished: shutil.copytree(bundle, unfinished))
            return
        shutil.copytree(kept, bundle, dirs_exist_ok=True)

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
        patch.setattr(export, "write_parts", take_parts)
        patch.setattr(export, "_sync", lambda _folder: None)  # no power is cut
        yield


@contextmanager
def drawn_anew() -> Iterator[None]:
    """Inside, an export does all that it does for a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_run_builder", _run_builder)
        patch.setattr(export, "write_parts", _write_parts)
        patch.setattr(export, "_sync", _sync)
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
    """Of all that is read: the names and contents of the files."""
    digest = hashlib.sha256()
    for path in sorted(filter(Path.is_file, folder.rglob("*"))):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
