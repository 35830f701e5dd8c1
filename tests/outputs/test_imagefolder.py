"""The imagefolder: every caption beside its own image, in a folder that is nobody else's, whatever kills it."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from batchcap.config import Existing, FolderImages, InputConfig, JobConfig, OutputsConfig
from batchcap.core.atomic import write_many
from batchcap.core.errors import UsageError, WorkerError
from batchcap.core.jobfolder import DATASET_MARK
from batchcap.inputs.parquet import ParquetTable
from batchcap.job import recorder
from batchcap.outputs import imagefolder, staged
from batchcap.outputs.convert import convert
from batchcap.outputs.form import Written
from tests.images.samples import encode, noise
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, parquet_job, with_outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the form is written by default."""
    return tmp_path / "out-imagefolder"


def converted(config: JobConfig, form: str = "imagefolder", **settings: Any) -> Written:
    """What was written in a form."""
    (written,) = convert(Path(config.output), [form], OutputsConfig(**settings))
    return written


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def images(folder: Path) -> list[str]:
    """The images of a folder by their paths inside it."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.suffix in (".png", ".jpg")
    )


def resized(tmp_path: Path) -> None:
    """Give each image file a size of its own: 20 + its place."""
    for place, path in enumerate(sorted((tmp_path / "in").rglob("*.*"))):
        path.write_bytes(encode(noise(20 + place, 10)))


def test_images_are_linked_and_the_captions_are_theirs(
    config: JobConfig, run: Run, tmp_path: Path, folder: Path
) -> None:
    resized(tmp_path)
    run(config)
    written = converted(config)
    assert written.to_text() == (f"imagefolder: 3 captions in 5 files in {folder}; left out: 1 failed, 1 truncated")
    assert [row["id"] for row in records(folder)] == ["a.png", "sub/b.jpg", "sub/c d.webp"]
    for row in records(folder):
        assert row["caption"] == f"Caption of {row['id']}."
        assert (folder / row["file_name"]).samefile(tmp_path / "in" / row["id"])
        assert row["file_name"].endswith(".png"), "the name says what the content is"
    assert len({row["file_name"] for row in records(folder)}) == len(images(folder)) == 3


def test_copies(config: JobConfig, run: Run, tmp_path: Path, folder: Path) -> None:
    run(config)
    converted(config)
    converted(config, folder_images=FolderImages.COPY)
    for row in records(folder):
        copy, original = folder / row["file_name"], tmp_path / "in" / row["id"]
        assert not copy.samefile(original)
        assert copy.read_bytes() == original.read_bytes()
    converted(config)
    assert all((folder / row["file_name"]).samefile(tmp_path / "in" / row["id"]) for row in records(folder))


def test_a_disk_without_links(
    config: JobConfig, run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_self: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuses)
    run(config)
    converted(config)
    assert len(images(folder)) == 3
    assert not (folder / images(folder)[0]).samefile(tmp_path / "in/a.png")


def test_images_of_a_table_are_written_out_with_its_columns(
    config: JobConfig, run: Run, tmp_path: Path, folder: Path
) -> None:
    write_table(
        tmp_path / "x.parquet",
        {
            "image": [encode(noise(20, 10)), encode(noise(30, 10), "JPEG")],
            "image_file_name": ["p", "q"],
            "more": [{"file_name": "z"}, None],
            "file_name": ["r", "s"],
        },
    )
    given = InputConfig((str(tmp_path / "x.parquet"),), image_column="image", keep_columns=("*",))
    config = replace(config, input=given)
    run(config)
    converted(config)
    first, second = records(folder)
    assert first == {
        "file_name": "images/00000/00000000.png",
        "id": "x.parquet:0",
        "caption": "Caption of x.parquet:0.",
        "image_filename": "p",
        "more": '{"file_name": "z"}',
        "filename": "r",
    }
    assert second["file_name"] == "images/00000/00000001.jpg"
    assert Image.open(io.BytesIO((folder / second["file_name"]).read_bytes())).size == (30, 10)


def test_two_prompts_and_other_verdicts(two_prompts: JobConfig, run: Run, folder: Path) -> None:
    run(two_prompts)
    converted(two_prompts, verdicts=("ok", "truncated"))
    rows = records(folder)
    assert len(rows) == 4
    assert list(rows[0]) == ["file_name", "id", "caption_short", "verdict_short", "caption_long", "verdict_long"]
    converted(two_prompts)
    assert len(records(folder)) == len(images(folder)) == 3, "what is no longer wanted goes away"


def test_an_image_that_is_another_one_now(config: JobConfig, run: Run, tmp_path: Path, folder: Path) -> None:
    run(config)
    (tmp_path / "in/a.png").write_bytes(encode(noise(20, 10, seed=1)))
    (tmp_path / "in/sub/b.jpg").rename(tmp_path / "b.jpg")
    assert "2 not written, since their images are gone or have changed" in converted(config).to_text()
    assert [row["id"] for row in records(folder)] == ["sub/c d.webp"]
    (tmp_path / "b.jpg").rename(tmp_path / "in/sub/b.jpg")
    assert (converted(config).captions, converted(config).changed) == (2, 1), "it is back"


def test_an_input_file_that_is_gone(config: JobConfig, run: Run, tmp_path: Path, folder: Path) -> None:
    config = parquet_job(config, tmp_path)
    run(config)
    (tmp_path / "x.parquet").unlink()
    assert (converted(config).captions, converted(config).changed) == (0, 2)
    assert records(folder) == []


def test_a_part_that_is_there_is_not_made_again(config: JobConfig, run: Run, tmp_path: Path, folder: Path) -> None:
    run(config)
    first = converted(config, folder_images=FolderImages.COPY)
    before = {name: (folder / name).stat().st_mtime_ns for name in images(folder)}
    lost = images(folder)[0]
    (folder / lost).unlink()
    assert converted(config, folder_images=FolderImages.COPY) == first
    after = {name: (folder / name).stat().st_mtime_ns for name in images(folder)}
    same_part = {name for name in before if name.split("/")[1] == lost.split("/")[1]}
    assert {name for name in before if after[name] != before[name]} == same_part


@pytest.mark.parametrize("writes", [0, 1])
def test_a_kill_while_images_are_written(
    config: JobConfig, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """What is there is whole, metadata comes at the end, and the next run goes on in the same folder."""
    run(config)
    left = [writes]

    def killed(contents: dict[Path, bytes]) -> None:
        if contents and not left[0]:
            raise KeyboardInterrupt
        left[0] -= bool(contents)
        write_many(contents)

    with monkeypatch.context() as patch:
        patch.setattr(imagefolder, "write_many", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(config, folder_images=FolderImages.COPY)
    assert not (folder / "metadata.jsonl").exists()
    assert len(images(folder)) == writes
    converted(config, folder_images=FolderImages.COPY)
    assert len(images(folder)) == len(records(folder)) == 3


def test_while_a_job_runs(config: JobConfig, run: Run, folder: Path) -> None:
    asked = with_outputs(config, also=("imagefolder",))
    with pytest.raises(WorkerError):
        run(asked, dies_after=4)
    assert images(folder)
    assert not (folder / "metadata.jsonl").exists()
    assert "imagefolder: 3 captions in 5 files" in run(asked).message
    assert len(records(folder)) == 3


def test_a_dataset_below_the_inputs_is_not_captioned(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """Else each run would caption what the last one has written."""
    asked = with_outputs(replace(config, output=str(tmp_path / "in/out")), also=("imagefolder",))
    run(asked)
    assert len(images(tmp_path / "in/out-imagefolder")) == 3
    run(asked, dies_after=0)
    assert len(images(tmp_path / "in/out-imagefolder")) == 3


def test_a_folder_of_somebody_else(config: JobConfig, run: Run, folder: Path) -> None:
    run(config)
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty, and this job did not write it"):
        converted(config)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "notes.txt"]
    assert converted(config, existing=Existing.REPLACE).kept == 1
    assert [(folder / name).read_text() for name in ("README.md", "notes.txt")] == ["mine", "mine"]
    assert converted(config).kept == 1, "now it is ours, and the README.md is not"
    (folder / DATASET_MARK).unlink()
    with pytest.raises(UsageError, match="is not empty"):
        converted(config)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("out/x", "into the job folder"),
        ("in", "is not empty"),
        ("file", "is no folder"),
    ],
)
def test_a_place_that_is_none(config: JobConfig, run: Run, tmp_path: Path, where: str, message: str) -> None:
    (tmp_path / "file").write_text("mine")
    run(config)
    with pytest.raises(UsageError, match=message):
        converted(config, f"imagefolder:{tmp_path / where}")
    with pytest.raises(UsageError, match="images of this job lie in"):
        converted(config, f"imagefolder:{tmp_path / 'in'}", existing=Existing.REPLACE)


def test_in_place(config: JobConfig, run: Run, tmp_path: Path) -> None:
    asked = with_outputs(config, also=("imagefolder",), folder_images=FolderImages.INPLACE)
    before = images(tmp_path / "in")
    assert "imagefolder: 3 captions in 2 files" in run(asked).message
    assert [row["file_name"] for row in records(tmp_path / "in")] == ["a.png", "sub/b.jpg", "sub/c d.webp"]
    assert images(tmp_path / "in") == before
    run(asked, dies_after=0)
    converted(asked, folder_images=FolderImages.INPLACE, verdicts=("truncated",))
    assert images(tmp_path / "in") == before, "the images are somebody else's"


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "sub/metadata.csv"])
def test_in_place_beside_metadata_of_somebody_else(config: JobConfig, run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / name).write_text("mine")
    run(config)
    with pytest.raises(UsageError, match="is there already"):
        converted(config, folder_images=FolderImages.INPLACE)
    assert (tmp_path / "in" / name).read_text() == "mine"
    if name == "metadata.jsonl":
        converted(config, folder_images=FolderImages.INPLACE, existing=Existing.REPLACE)
        assert len(records(tmp_path / "in")) == 3


def test_in_place_of_two_folders(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2/z.png").write_bytes(encode(noise(20, 10)))
    config = replace(config, input=InputConfig((str(tmp_path / "in"), str(tmp_path / "in2"))))
    run(config)
    with pytest.raises(UsageError, match="needs all images in one input folder"):
        converted(config, folder_images=FolderImages.INPLACE)
    with pytest.raises(UsageError, match="some are in"):
        converted(config, f"imagefolder:{tmp_path / 'in'}", folder_images=FolderImages.INPLACE)
    converted(config, f"imagefolder:{tmp_path}", folder_images=FolderImages.INPLACE)
    assert records(tmp_path)[-1]["file_name"] == "in2/z.png"


def test_in_place_of_a_table(config: JobConfig, run: Run, tmp_path: Path) -> None:
    config = parquet_job(config, tmp_path)
    run(config)
    assert converted(config, f"imagefolder:{tmp_path / 'in'}", folder_images=FolderImages.INPLACE).unplaced == 2


def test_two_that_write_at_once(config: JobConfig, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config)
    monkeypatch.setattr(staged, "_LOCK_TIMEOUT_S", 0.05)

    def convert_too(_contents: dict[Path, bytes]) -> None:
        converted(config)

    with monkeypatch.context() as patch:
        patch.setattr(imagefolder, "write_many", convert_too)
        with pytest.raises(UsageError, match="is being written by another batchcap"):
            converted(config, folder_images=FolderImages.COPY)


def test_captioning_keeps_its_place_in_an_open_file(
    config: JobConfig, run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are written behind it: a row group must not be opened again for each of them."""
    write_table(tmp_path / "x.parquet", {"image": [encode(noise(20, 10))] * 12})
    opened: list[int] = []
    batches = ParquetTable.batches

    def counted(self: ParquetTable, group: int, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        opened.append(group)
        return batches(self, group, columns, max_rows)

    monkeypatch.setattr(ParquetTable, "batches", counted)
    monkeypatch.setattr(recorder, "FLUSH_INTERVAL_S", 0.0)
    run(with_outputs(replace(config, input=InputConfig((str(tmp_path / "x.parquet"),))), also=("imagefolder",)))
    assert len(records(folder)) == 12
    assert opened == [0, 0]
