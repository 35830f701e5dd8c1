"""What was tuned is found again for the same bundle and machine, and passed over, with a warning, for any other."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batchcap.core.errors import UsageError
from batchcap.engines import tuned as record
from batchcap.engines.profiles import INT8_ENCODER, Settings, Tuned
from batchcap.engines.tuned import TuningKey, read_tuned, write_tuned

BUNDLE = "c" * 64
TUNED = Tuned(
    Settings(decoders=2, slots=24, vision_threads=1).with_encoder(INT8_ENCODER),
    datetime(2026, 11, 25, 13, 30, tzinfo=UTC),
    speedup=1.25,
    rounded_vision=True,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_found_again_without_a_word(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_tuned(BUNDLE) is None
    path = write_tuned(BUNDLE, TUNED, [{"note": "slower"}])
    assert path.is_relative_to(cache)
    assert read_tuned(BUNDLE) == TUNED
    assert read_tuned("d" * 64) is None
    assert not caplog.records
    assert json.loads(path.read_text())["measured"] == [{"note": "slower"}]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def _set(*keys: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("format_version", value=0), "is of format 0"),
        (_set("made_for", "cpu", value="Another CPU"), "was measured with cpu Another CPU, not "),
        (_set("made_for", "cores", value=999), "was measured with cores 999, not "),
        (_set("made_for", "bundle", value="f" * 64), "was measured with bundle fff"),
        (_set("made_for", "onnxruntime", value="1.0.0"), "was measured with onnxruntime 1.0.0, not "),
        (_set("settings", "slots", value=0), "is damaged"),
        (_set("settings", "slots", value="16"), "is damaged"),
        (_set("settings", "slots", value=2.5), "is damaged"),
        (_set("settings", "decoders", value=True), "is damaged"),
        (_set("settings", "vision_dtype", value="fp4"), "is damaged"),
        (_set("settings", "speed", value=3), "is damaged"),
        (_set("settings", value=[]), "is damaged"),
        (_set("made_for", value={}), "is damaged"),
        (_set("measured_at", value="yesterday"), "is damaged"),
        (_set("speedup", value=None), "is damaged"),
    ],
)
def test_what_does_not_hold_here_is_passed_over(
    change: Callable[[dict[str, Any]], None], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tuned(BUNDLE, TUNED, [])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert read_tuned(BUNDLE) is None
    (warning,) = caplog.messages
    assert str(path) in warning
    assert words in warning
    assert "run `batchcap tune` again" in warning


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b'"text"', b"\xff\xfe"])
def test_a_broken_file_is_passed_over(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    write_tuned(BUNDLE, TUNED, []).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert read_tuned(BUNDLE) is None
    assert "run `batchcap tune` again" in caplog.text


def test_another_kind_of_machine_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = write_tuned(BUNDLE, TUNED, [])
    monkeypatch.setattr(record, "available_cores", lambda: 64)
    assert TuningKey.here(BUNDLE).path != here
    assert read_tuned(BUNDLE) is None


def test_a_place_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    with pytest.raises(UsageError, match="set BATCHCAP_CACHE to a folder that can be written"):
        write_tuned(BUNDLE, TUNED, [])
    assert read_tuned(BUNDLE) is None
