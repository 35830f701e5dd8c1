"""Datasets for the hub: Parquet with images that `datasets` shows as such, and a card that is true."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchcap.config import FolderImages, GenerationConfig, InputConfig, JobConfig, OutputsConfig
from batchcap.core.atomic import TEMPORARY_SUFFIX
from batchcap.core.errors import UsageError
from batchcap.outputs import hub_parquet
from batchcap.outputs.card import size_category
from batchcap.outputs.convert import convert
from batchcap.outputs.form import Written
from batchcap.outputs.pairs import image_suffix
from tests.images.samples import encode, noise
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, parquet_job, with_outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the form is written by default."""
    return tmp_path / "out-hf-parquet"


def converted(config: JobConfig, form: str = "hf-parquet", **settings: Any) -> Written:
    """What was written in a form."""
    (written,) = convert(Path(config.output), [form], OutputsConfig(**settings))
    return written


def names(folder: Path) -> list[str]:
    """The Parquet files."""
    return sorted(path.name for path in (folder / "data").iterdir())


def test_images_lie_beside_their_captions(config: JobConfig, run: Run, tmp_path: Path, folder: Path) -> None:
    run(config)
    assert converted(config).to_text() == (
        f"hf-parquet: 3 captions in 4 files in {folder}; left out: 1 failed, 1 truncated"
    )
    assert names(folder) == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]
    table = pq.read_table(folder / "data/train-00001.parquet")
    assert table.column_names == ["image", "id", "caption"]
    (row,) = table.to_pylist()
    assert row["image"] == {"bytes": (tmp_path / "in/sub/b.jpg").read_bytes(), "path": "b.png"}
    assert (row["id"], row["caption"]) == ("sub/b.jpg", "Caption of sub/b.jpg.")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}}


def test_row_groups_are_small(
    config: JobConfig, run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shows a row without reading a thousand images; also where the images are large."""
    columns = {"image": [encode(noise(20, 10))] * 5, "Image ": range(5), "IMAGE": list("abcde")}
    write_table(tmp_path / "x.parquet", columns)
    given = InputConfig((str(tmp_path / "x.parquet"),), image_column="image", keep_columns=("Image ", "IMAGE"))
    config = replace(config, input=given, placement=replace(config.placement, rows_per_part=10))
    run(config)
    monkeypatch.setattr(hub_parquet, "_GROUP_ROWS", 2)
    converted(config)
    file = pq.ParquetFile(folder / "data/train-00000.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [2, 2, 1]
    assert file.schema_arrow.names == ["image", "id", "caption", "Image ", "input_IMAGE"]
    assert file.read()["input_IMAGE"].to_pylist() == list("abcde")
    monkeypatch.setattr(hub_parquet, "_GROUP_BYTES", 1)
    converted(config, verdicts=("ok", "empty"))
    assert pq.ParquetFile(folder / "data/train-00000.parquet").num_row_groups == 5


def test_a_part_without_captions_has_no_file(config: JobConfig, run: Run, folder: Path) -> None:
    run(config)
    converted(config)
    converted(config, verdicts=("truncated",))
    assert names(folder) == ["train-00001.parquet"], "what was written with other settings is gone"
    assert pq.read_table(folder / "data")["verdict"].to_pylist() == ["truncated"]


def test_a_kill_before_a_file_is_whole(
    config: JobConfig, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)

    def killed(*_anything: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub_parquet._Groups, "_write_group", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(config)
    assert names(folder) == []
    leftovers = [folder / f".README.md.1{TEMPORARY_SUFFIX}", folder / f"data/.train-00000.parquet.1{TEMPORARY_SUFFIX}"]
    for path in leftovers:
        path.write_bytes(b"half of it")
    converted(config)
    assert len(names(folder)) == 3
    assert not any(path.exists() for path in leftovers)


def test_files_that_are_there_stay(config: JobConfig, run: Run, folder: Path) -> None:
    asked = with_outputs(config, also=("hf-parquet",))
    run(asked)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "data").iterdir()}
    card = (folder / "README.md").stat().st_mtime_ns
    run(asked, dies_after=0)
    converted(config)
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "data").iterdir()} == before
    assert (folder / "README.md").stat().st_mtime_ns == card


def test_the_card(config: JobConfig, run: Run, tmp_path: Path, folder: Path) -> None:
    prompt = {"a": "Say ```what``` you | see.\n# No heading", "b": "Why?"}
    config = parquet_job(replace(config, generation=GenerationConfig(prompt=prompt)), tmp_path)
    config = replace(config, input=replace(config.input, image_root=str(tmp_path)))
    run(config)
    converted(config, license="cc-by-4.0")
    text = (folder / "README.md").read_text()
    front = text.split("---\n")[1].splitlines()
    assert "license: cc-by-4.0" in front
    assert "- n<1K" in front
    assert '    - "data/train-*.parquet"' in front
    assert "# out-hf-parquet" in text
    assert "2 images with captions that a model wrote (4 captions)" in text
    assert "Prompt `a`:\n\n````text\nSay ```what``` you | see.\n# No heading\n````\n" in text
    assert "| model | none (int4) |" in text
    assert "| title | a column of the input |" in text
    assert "| rows of the job that are finished | 2 |\n| rows that failed | 0 |" in text
    assert str(tmp_path) not in text, "no path of the machine leaves it"


def test_the_card_counts_what_is_left_out(config: JobConfig, run: Run, folder: Path) -> None:
    run(config)
    converted(config)
    text = (folder / "README.md").read_text()
    assert "license: unknown" in text
    assert "| rows of the job that are finished | 5 |\n| rows that failed | 1 |\n| … corrupt | 1 |" in text
    assert "| captions left out since they are truncated | 1 |" in text


def test_a_card_that_was_edited_stays(config: JobConfig, run: Run, folder: Path) -> None:
    run(config)
    converted(config)
    (folder / "README.md").write_text("mine")
    assert converted(config, license="mit").kept == 1
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["CC BY 4.0", "", "mit\nx: y"])
def test_a_license_that_is_no_identifier(name: str) -> None:
    with pytest.raises(UsageError, match="must be an identifier of the Hugging Face hub"):
        OutputsConfig(license=name)


@pytest.mark.parametrize(
    ("rows", "category"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (5 * 10**8, "100M<n<1B"), (10**9, "n>1B")]
)
def test_sizes_as_the_hub_calls_them(rows: int, category: str) -> None:
    assert size_category(rows) == category


DATASETS = """
import json, sys
from datasets import load_dataset
place, cache = sys.argv[1:]
found = {}
for name, arguments, files in (
    ("by data_dir", ["imagefolder"], {"data_dir": f"{place}/out-imagefolder"}),
    ("imagefolder", [f"{place}/out-imagefolder"], {}),
    ("in place", [f"{place}/in"], {}),
    ("parquet", ["parquet"], {"data_files": f"{place}/out-hf-parquet/data/*.parquet"}),
    ("hf-parquet", [f"{place}/out-hf-parquet"], {}),
):
    splits = load_dataset(*arguments, **files, cache_dir=cache)
    found[name] = [list(splits), str(splits["train"].features["image"])[:5]]
    found[name] += [[row["id"], row["caption"], row["image"].size[0]] for row in splits["train"]]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_datasets_opens_them_and_the_captions_are_those_of_the_images(
    config: JobConfig, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in/a.png").rename(tmp_path / "in/test.png")  # a name that `datasets` takes for a split's
    for place, path in enumerate(sorted((tmp_path / "in").rglob("*.*"))):
        path.write_bytes(encode(noise(20 + place, 10)))
    run(config)
    convert(Path(config.output), ["imagefolder", "hf-parquet"], OutputsConfig())
    assert "for those of another split" not in caplog.text
    convert(Path(config.output), ["imagefolder"], OutputsConfig(folder_images=FolderImages.INPLACE))
    assert "takes names such as test.png for those of another split" in caplog.text
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", DATASETS, str(tmp_path), str(tmp_path / "hf-cache")]
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = ["sub/b.jpg", "sub/c d.webp", "test.png"]
    expected = [[name, f"Caption of {name}.", 20 + place] for place, name in enumerate(ids, 2)]
    for name, (splits, kind, *rows) in json.loads(done.stdout.splitlines()[-1]).items():
        assert splits == ["train"], name
        assert kind == "Image", name
        assert rows == expected, name


def test_columns_of_every_type_go_in(config: JobConfig, run: Run, tmp_path: Path, folder: Path) -> None:
    columns = {
        "image": pa.array([encode(noise(20, 10))] * 2, pa.binary()),
        "kind": pa.array(["k", None]).dictionary_encode(),
        "tags": pa.array([["a"], None]),
        "more": pa.array([{"x": 1.5}, None]),
    }
    write_table(tmp_path / "x.parquet", columns)
    given = InputConfig((str(tmp_path / "x.parquet"),), image_column="image", keep_columns=("*",))
    config = replace(config, input=given)
    run(config)
    converted(config)
    table = pq.read_table(folder / "data").select(["kind", "tags", "more"])
    assert table.to_pylist() == [{"kind": "k", "tags": ["a"], "more": {"x": 1.5}}, dict.fromkeys(table.column_names)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI"])
def test_every_format_has_its_extension(kind: str) -> None:
    suffix = image_suffix(encode(noise(20, 10), kind))
    assert Image.registered_extensions()[suffix or ""] == kind


@pytest.mark.parametrize(
    ("beginning", "suffix"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ".heic"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", ".avif"),
        (b"\0\0\0\x0cJXL \r\n", ".jxl"),
        (b"\xff\x0a\xfa", ".jxl"),
        (b"anything", None),
    ],
)
def test_extensions_of_formats_of_extras(beginning: bytes, suffix: str | None) -> None:
    assert image_suffix(beginning) == suffix
