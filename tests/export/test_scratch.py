"""An export that ends early, even by a kill, leaves nothing that looks like a bundle and nothing that stays."""

import os
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from batchcap.core.errors import BatchcapError, LockedError
from batchcap.export import scratch
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.export import export_bundle
from batchcap.export.scratch import put_in_place, require_space, scratch_folder
from batchcap.model.bundle import BUNDLE_FILE
from tests.checkpoints import Shape, make_checkpoint
from tests.export.forked import start_export

pytestmark = pytest.mark.slow

OPTIONS = ExportOptions(block_size=32, context=64)
WAIT_S = 60.0


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("scratch") / "small", Shape(layers=2, levels=(0, 1), vision_depth=2))


@pytest.fixture
def errors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for the stderr of an export, not where the test looks for what an export leaves."""
    return tmp_path_factory.mktemp("errors") / "stderr"


def builder_of(process: ForkServerProcess) -> psutil.Process:
    """The model builder that the export has started; waits for it."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        for child in psutil.Process(process.pid).children():
            if "batchcap.export.graph.builder_process" in child.cmdline():
                return child
        time.sleep(0.02)
    raise AssertionError("no model builder was started")


def wait_gone(process: psutil.Process) -> None:
    psutil.wait_procs([process], timeout=WAIT_S)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_export_is_cleaned_up_by_the_next(checkpoint: Path, tmp_path: Path, errors: Path) -> None:
    output = tmp_path / "bundle"
    process = start_export(checkpoint, output, errors)
    builder = builder_of(process)
    process.kill()
    process.join()
    wait_gone(builder)  # it does not live on without the export
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.partial"]
    assert not list(tmp_path.rglob(BUNDLE_FILE))
    export_bundle(str(checkpoint), output, OPTIONS)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_a_stopped_export_leaves_nothing(
    number: signal.Signals, exit_code: int, checkpoint: Path, tmp_path: Path, errors: Path
) -> None:
    process = start_export(checkpoint, tmp_path / "bundle", errors)
    builder = builder_of(process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(WAIT_S)
    assert process.exitcode == exit_code
    assert "Traceback" not in errors.read_text()
    wait_gone(builder)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_no_fault_of_a_library(checkpoint: Path, tmp_path: Path, errors: Path) -> None:
    """Ctrl-C while a session is made, which takes seconds and whose every exception means a broken graph."""
    stop = "import os, onnxruntime; onnxruntime.InferenceSession = lambda *_, **__: os.kill(os.getpid(), 2)"
    process = start_export(checkpoint, tmp_path / "bundle", errors, before=stop)
    process.join(WAIT_S)
    assert process.exitcode == 130
    assert errors.read_text().endswith("batchcap: error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_place(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with scratch_folder(output) as folder:
        (folder / "work").touch()
        with (
            pytest.raises(LockedError, match=r"another export to .*bundle is running"),
            scratch_folder(output),
        ):
            pass
        assert (folder / "work").exists()
        with scratch_folder(tmp_path / "bundle2") as other:
            assert other != folder
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_whatever_they_are(tmp_path: Path) -> None:
    leftover = tmp_path / ".bundle.partial" / "bundle" / "decoder"
    leftover.mkdir(parents=True)
    (leftover / "model.onnx.data").touch()
    (leftover.parent.parent / "file").touch()
    with scratch_folder(tmp_path / "bundle") as folder:
        assert [path.name for path in folder.iterdir()] == ["lock"]


def test_new_folders_above_stay_only_with_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    output = tmp_path / "old" / "new" / "newer" / "bundle"
    with pytest.raises(ValueError, match="stop"), scratch_folder(output):
        raise ValueError("stop")
    assert list((tmp_path / "old").iterdir()) == []
    with scratch_folder(output) as folder:
        (folder / "bundle").mkdir()
        put_in_place(folder / "bundle", output)
    assert list(output.parent.iterdir()) == [output]


def test_a_full_disk_is_noticed_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda _folder: DiskUsage(1 << 30, 1 << 30, 1000))
    with pytest.raises(BatchcapError, match=r"needs .* GiB at .* 0\.0 GiB are free: free space or choose"):
        export_bundle(str(checkpoint), tmp_path / "bundle", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_room_that_is_there_is_enough(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    require_space(tmp_path, stat.f_bavail * stat.f_frsize // 2)


def two_folders(folder: Path) -> tuple[Path, Path]:
    for name in ("new", "old"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    return folder / "new", folder / "old"


def test_a_bundle_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(_path: Path, _target: Path) -> Path:
        raise AssertionError("between two renames there would be no bundle")

    new, old = two_folders(tmp_path)
    monkeypatch.setattr(Path, "rename", rename)
    put_in_place(new, old)
    assert [(path / "file").read_text() for path in (new, old)] == ["old", "new"]


def test_a_bundle_is_replaced_where_folders_can_not_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = two_folders(tmp_path)
    monkeypatch.setattr(scratch, "_exchange", lambda _one, _other: False)
    put_in_place(new, old)
    assert (old / "file").read_text() == "new"
    assert not new.exists()
    assert (tmp_path / "replaced" / "file").read_text() == "old"
