"""Places of forms: no file of a form, of an input or of the job itself is written over by another form."""

from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import Existing, InputConfig, JobConfig, OutputsConfig
from batchcap.core.errors import StorageError, UsageError
from batchcap.outputs.convert import convert
from tests.images.samples import encode, noise
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, parquet_job, with_outputs


@pytest.mark.parametrize(
    "forms",
    [("jsonl:{}/x", "csv:{}/x"), ("imagefolder:{}/x", "hf-parquet:{}/y/../x"), ("jsonl:{}/x", "jsonl:{}/x")],
)
def test_two_forms_at_one_place(config: JobConfig, run: Run, tmp_path: Path, forms: tuple[str, str]) -> None:
    asked = [form.format(tmp_path) for form in forms]
    with pytest.raises(UsageError, match="would both be written to"):
        run(with_outputs(config, also=asked))
    assert not list(tmp_path.glob("out/part-*"))  # refused before any work
    run(config)
    with pytest.raises(UsageError, match="would both be written to"):
        convert(Path(config.output), asked, OutputsConfig())
    assert not (tmp_path / "x").exists()


def test_texts_of_several_kinds_may_share_a_folder(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(with_outputs(config, also=[f"txt:{tmp_path / 'x'}", f"json:{tmp_path / 'x'}"]))
    assert {path.name for path in (tmp_path / "x").iterdir() if path.is_file()} == {"a.json", "a.txt"}


def test_an_image_is_not_replaced(config: JobConfig, run: Run, tmp_path: Path) -> None:
    image = tmp_path / "in" / "a.png"
    before = image.read_bytes()
    run(config)
    with pytest.raises(UsageError, match="is an input of this job"):
        convert(Path(config.output), [f"csv:{image}"], OutputsConfig(existing=Existing.REPLACE))
    assert image.read_bytes() == before


@pytest.mark.parametrize("form", ["arrow:{}/tables/x.parquet", "dataset:{}/tables", "hf-parquet:{}/tables"])
def test_a_table_is_not_replaced(config: JobConfig, run: Run, tmp_path: Path, form: str) -> None:
    (tmp_path / "tables").mkdir()
    table = write_table(tmp_path / "tables/x.parquet", {"image": [encode(noise(20, 10))] * 2})
    before = table.read_bytes()
    tables = replace(config, input=InputConfig((str(table),)))
    with pytest.raises(UsageError, match="is an input of this job"):
        run(with_outputs(tables, also=[form.format(tmp_path)], existing=Existing.REPLACE))
    assert table.read_bytes() == before


@pytest.mark.parametrize("form", ["csv:{}/part-00000.parquet", "txt:{}", "json:{}/texts"])
def test_nothing_is_written_into_the_job_folder(config: JobConfig, run: Run, tmp_path: Path, form: str) -> None:
    run(config)
    before = {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UsageError, match="into the job folder"):
        convert(Path(config.output), [form.format(config.output)], OutputsConfig(existing=Existing.REPLACE))
    assert {path.name for path in (tmp_path / "out").iterdir()} == before


def test_a_damaged_part_is_named(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """Its footer is whole, so nobody finds out before its rows are read."""
    run(parquet_job(config, tmp_path))
    part = tmp_path / "out" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[4:600] = b"\xff" * 596
    part.write_bytes(content)
    for form in ("jsonl", "dataset", "hf-parquet"):
        with pytest.raises(StorageError, match=r"the part .*part-00000\.parquet is damaged"):
            convert(Path(config.output), [form], OutputsConfig())


def test_a_folder_of_another_form(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """Also of the same job: a dataset of two forms is none."""
    run(with_outputs(config, also=[f"imagefolder:{tmp_path / 'x'}"]))
    before = {path.name for path in (tmp_path / "x").iterdir()}
    with pytest.raises(UsageError, match="did not write it as webdataset"):
        convert(Path(config.output), [f"webdataset:{tmp_path / 'x'}"], OutputsConfig())
    assert {path.name for path in (tmp_path / "x").iterdir()} == before


def test_names_that_would_be_too_long(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """One of them leaves the others their captions."""
    long = tmp_path / "in" / f"{'l' * 251}.png"
    long.write_bytes(encode(noise(20, 10)))
    run(config)
    (written,) = convert(Path(config.output), ["txt"], OutputsConfig(full_names=True))
    assert "1 not written, since file names would be too long: txt:FOLDER cuts them" in written.to_text()
    assert (tmp_path / "in" / "a.png.txt").read_text() == "Caption of a.png."
    (written,) = convert(Path(config.output), [f"txt:{tmp_path / 'texts'}"], OutputsConfig(full_names=True))
    assert written.captions == len(list((tmp_path / "texts").rglob("*.txt"))) == 4


def test_images_of_a_table_need_a_folder(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(parquet_job(config, tmp_path))
    (written,) = convert(Path(config.output), ["txt"], OutputsConfig())
    assert written.to_text().endswith("since their images are no files of their own: name a folder (txt:FOLDER)")


def test_what_is_not_done_yet_is_told(
    config: JobConfig, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config)
    convert(Path(config.output), ["jsonl"], OutputsConfig())
    assert "are left" not in caplog.text
    (tmp_path / "out" / "part-00000.parquet").unlink()
    convert(Path(config.output), ["jsonl"], OutputsConfig())
    assert "2 rows of" in caplog.text
