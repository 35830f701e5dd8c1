"""Jobs of images with metadata and text beside them: interrupted, retried, begun by earlier versions."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchcap.config import InputConfig, JobConfig, ResumeConfig
from batchcap.core.errors import ChangedInputError
from batchcap.store.parts import write_part
from tests.inputs.imagefolders import FORMS, IMAGES, described, job_of, make_images, output_of, run, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_images(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    return job_of(folder, monkeypatch)


class _KilledError(BaseException):
    """The end of the process, as far as the code can tell."""


@pytest.mark.parametrize("form", FORMS)
def test_after_a_kill_the_columns_are_those_of_a_job_without_one(
    config: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    write(folder / f"metadata.{form}", described()[::-1])
    whole = replace(config, output=f"{config.output}-whole")
    run(whole)
    with monkeypatch.context() as killing:
        killing.setattr("batchcap.job.part_writer.write_part", _die_at_the_first_part)
        with pytest.raises(_KilledError):
            run(config)
    assert len(output_of(config)) == 2
    run(config)
    assert output_of(config) == output_of(whole)
    assert [(row["id"], row["text"], row["label"]) for row in output_of(config)] == [
        (name, f"of {name}", place) for place, name in enumerate(IMAGES)
    ]


def _die_at_the_first_part(path: Path, *arguments: Any) -> None:
    if path.name == "part-00000.parquet":  # the engine gives its rows back from the last to the first
        raise _KilledError
    write_part(path, *arguments)


def test_a_job_that_has_rows_of_it_goes_on(
    config: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As earlier versions planned it; neither lost nor doubled, and a change is noticed."""
    config = replace(config, input=InputConfig((str(folder),)))
    write(folder / "metadata.parquet", described())
    with monkeypatch.context() as earlier:
        earlier.setattr("batchcap.inputs.discover.PARQUET_NAME", "none")
        run(replace(config, limits=replace(config.limits, limit=4)))
    assert [row["id"] for row in output_of(config)[2:]] == ["metadata.parquet:0", "metadata.parquet:1"]
    make_images(folder, ["new.png"])
    run(config)
    ids = [row["id"] for row in output_of(config)]
    assert ids == [*IMAGES[:2], *(f"metadata.parquet:{row}" for row in range(4)), *IMAGES[2:], "new.png"]
    write(folder / "metadata.parquet", described()[:3])
    with pytest.raises(ChangedInputError, match=r"had 4 rows .*and has 3 now"):
        run(config)


def test_metadata_that_is_gone_leaves_what_was_carried(
    config: JobConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, input=InputConfig((str(folder),), keep_columns=("text",)))
    make_images(folder, ["bad.png"])
    names = sorted([*IMAGES, "bad.png"])
    path = write(folder / "metadata.jsonl", described(names))
    run(config)
    path.unlink()
    make_images(folder, ["z.png"])
    with caplog.at_level(logging.WARNING):
        run(replace(config, resume=ResumeConfig(("failed",))))
    assert "no input has a column text now: it is null" in caplog.text
    assert {row["id"]: row["text"] for row in output_of(config)} == {name: f"of {name}" for name in names} | {
        "z.png": None
    }


def test_captions_beside_images_are_not_carried_by_a_retry(config: JobConfig, folder: Path) -> None:
    """Who captions a folder anew has other text there by then."""
    config = replace(config, input=InputConfig((str(folder),), keep_columns=("txt",)))
    make_images(folder, ["a-bad.png"])
    for name in ("a", "a-bad"):
        (folder / f"{name}.txt").write_text(f"first {name}")
    run(config)
    (folder / "a.txt").write_text("second")
    run(replace(config, resume=ResumeConfig(("failed",))))
    texts = {row["id"]: row["txt"] for row in output_of(config)}
    assert texts == {"a-bad.png": "first a-bad", "a.png": "first a", **dict.fromkeys(IMAGES[1:])}
