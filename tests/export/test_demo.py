"""Which bundle a job loads: the one named, or the demo model, exported once and mended when it breaks."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import DEMO_MODEL
from batchcap.core.cache import cache_folder
from batchcap.core.errors import BundleError, UsageError
from batchcap.export import demo as model
from batchcap.export.demo import DEMO_NOTE, demo_checkpoint, load_model
from batchcap.model.bundle import Bundle


def test_the_bundle_that_is_named(tiny_bundle_int4: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_model(str(tiny_bundle_int4.folder)).id == tiny_bundle_int4.id
    assert not caplog.messages
    with pytest.raises(BundleError):
        load_model(str(tmp_path))


def test_where_the_demo_bundle_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for name in ("BATCHCAP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/batchcap")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/batchcap")
    monkeypatch.setenv("BATCHCAP_CACHE", "/named")
    assert cache_folder() == Path("/named")


def test_the_demo_model_is_exported_once_and_again_when_it_is_broken(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path))
    monkeypatch.setattr(model, "demo_checkpoint", lambda: tiny_checkpoint)
    caplog.set_level(logging.INFO, "batchcap")
    first = load_model(DEMO_MODEL)
    assert (first.folder.parent, first.source) == (tmp_path, "demo")
    assert first == replace(Bundle.load(first.folder), source="demo"), "the same bundle id as ever"
    assert caplog.messages[0] == DEMO_NOTE
    caplog.clear()
    assert load_model(DEMO_MODEL) == first
    assert caplog.messages == [DEMO_NOTE], "the second time there is nothing to export"
    shutil.rmtree(first.folder / "vision")
    assert load_model(DEMO_MODEL) == first
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "quiet is quiet"


def test_no_model_is_taken_by_accident() -> None:
    with pytest.raises(
        UsageError, match=r"no model is named: give --model BUNDLE.*batchcap export.*--model demo is the"
    ):
        load_model(None)


def test_a_bundle_in_a_folder_called_demo(
    tiny_bundle_int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "demo").symlink_to(tiny_bundle_int4.folder)
    monkeypatch.chdir(tmp_path)
    assert load_model("./demo").source != "demo"
    assert not caplog.messages
    monkeypatch.setattr(model, "demo_bundle", lambda: tiny_bundle_int4)
    assert load_model("demo").source == "demo"
    assert "--model ./demo" in caplog.text


def test_a_demo_model_that_is_kept_already_needs_no_writing(
    tiny_bundle_int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of a container may bring it along and be read-only."""
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path))
    monkeypatch.setattr("batchcap.export.export.export_key", lambda *_: "0" * 64)
    (tmp_path / f"demo-{'0' * 16}").symlink_to(tiny_bundle_int4.folder)
    assert load_model(DEMO_MODEL).id == tiny_bundle_int4.id
    assert [path.name for path in tmp_path.iterdir()] == [f"demo-{'0' * 16}"]


def test_no_place_for_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="set BATCHCAP_CACHE"):
        load_model(DEMO_MODEL)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCHCAP_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 987_654_321)  # no such user
    with pytest.raises(UsageError, match="set BATCHCAP_CACHE"):
        cache_folder()


def test_the_demo_checkpoint_is_in_the_package() -> None:
    assert (demo_checkpoint() / "config.json").exists()
