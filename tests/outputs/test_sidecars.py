"""Files of single images: whose they are decides what becomes of them, and nothing of somebody else is lost."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import Existing, InputConfig, JobConfig, OutputsConfig, PlacementConfig
from batchcap.core.errors import StorageError, UsageError, WorkerError
from batchcap.outputs import files
from batchcap.outputs.convert import convert
from batchcap.outputs.form import Written
from batchcap.store.folder import JobFolder
from tests.images.samples import encode, noise
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, parquet_job, with_outputs

TEXTS = {"a.txt": "Caption of a.png.", "sub/b.txt": "Caption of sub/b.jpg.", "sub/c d.txt": "Caption of sub/c d.webp."}


def texts(folder: Path, suffix: str = ".txt") -> dict[str, str]:
    """What the files with a suffix hold, by their names inside a folder."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob(f"*{suffix}"))}


def converted(config: JobConfig, form: str = "txt", **settings: object) -> Written:
    """What was written in a form."""
    (written,) = convert(Path(config.output), [form], OutputsConfig(**settings))  # type: ignore[arg-type]
    return written


def test_a_text_file_beside_each_image_that_has_a_good_caption(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(config)
    written = converted(config)
    assert texts(tmp_path / "in") == TEXTS
    assert written.to_text() == "txt: 3 captions in 3 files beside the images; left out: 1 failed, 1 truncated"
    assert converted(config) == written, "again, nothing is different"


def test_in_a_tree_of_their_own(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(config)
    converted(config, f"txt:{tmp_path / 'tree'}")
    assert texts(tmp_path / "tree") == TEXTS
    assert texts(tmp_path / "in") == {}


def test_verdicts_that_are_asked_for(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(config)
    assert converted(config, verdicts=("truncated",)).captions == 1
    assert texts(tmp_path / "in") == {"cut.txt": "Caption of cut.png."}


def test_several_prompts_have_a_file_each(two_prompts: JobConfig, run: Run, tmp_path: Path) -> None:
    run(two_prompts)
    converted(two_prompts)
    found = texts(tmp_path / "in")
    assert found["a.short.txt"] == "short of a.png."
    assert found["sub/b.long.txt"] == "long of sub/b.jpg."
    assert len(found) == 6


def test_names_with_the_extension(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in/a.jpg").write_bytes((tmp_path / "in/a.png").read_bytes())
    run(config)
    with pytest.raises(UsageError, match=r"one caption file: a\.jpg and a\.png\. .*--full-names keeps it"):
        converted(config)
    assert texts(tmp_path / "in") == {}
    converted(config, full_names=True)
    assert {"a.jpg.txt", "a.png.txt", "sub/b.jpg.txt"} <= texts(tmp_path / "in").keys()


def test_names_that_differ_in_case_only(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """A set of them can't be copied to the disks of other systems."""
    (tmp_path / "in/A.png").write_bytes((tmp_path / "in/a.png").read_bytes())
    run(config)
    with pytest.raises(UsageError, match=r"A\.png and a\.png"):
        converted(config, full_names=True)


def test_images_that_are_no_files_of_their_own(config: JobConfig, run: Run, tmp_path: Path) -> None:
    config = parquet_job(config, tmp_path)
    run(config)
    assert "2 not written, since their images are no files" in converted(config).to_text()
    converted(config, f"txt:{tmp_path / 'tree'}")
    assert texts(tmp_path / "tree") == {
        "x.parquet/0.txt": "Caption of x.parquet:0.",
        "x.parquet/1.txt": "Caption of x.parquet:1.",
    }


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Existing.SKIP, "mine"),
        (Existing.REPLACE, "Caption of a.png."),
        (Existing.APPEND, "mine, Caption of a.png."),
        (Existing.PREPEND, "Caption of a.png. mine"),
    ],
)
def test_a_file_that_is_there_already(
    config: JobConfig, run: Run, tmp_path: Path, policy: Existing, expected: str
) -> None:
    (tmp_path / "in/a.txt").write_text("mine\n")
    run(config)
    for _time in range(3):
        written = converted(config, existing=policy)
        assert texts(tmp_path / "in")["a.txt"].rstrip() == expected, "also again and again"
        assert written.kept == (policy is Existing.SKIP)


def test_existing_files_stop_the_job_before_any_work(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in/sub/b.txt").write_text("mine")
    asked = with_outputs(config, also=("txt",), existing=Existing.FAIL)
    with pytest.raises(UsageError, match=r"1 caption files are there already.*sub/b\.txt"):
        run(asked, dies_after=0)
    assert texts(tmp_path / "in") == {"sub/b.txt": "mine"}
    (tmp_path / "in/sub/b.txt").unlink()
    run(asked)
    run(asked)
    assert texts(tmp_path / "in") == TEXTS, "its own files are not in the way of a resume"


@pytest.mark.parametrize("policy", list(Existing))
def test_a_file_that_was_edited_since_is_kept(config: JobConfig, run: Run, tmp_path: Path, policy: Existing) -> None:
    run(config)
    converted(config)
    (tmp_path / "in/a.txt").write_text("edited")
    written = converted(config, existing=policy)
    assert texts(tmp_path / "in")["a.txt"] == (TEXTS["a.txt"] if policy is Existing.REPLACE else "edited")
    assert written.kept == (policy is not Existing.REPLACE)


def test_a_folder_that_can_not_be_written_to_is_told_before_any_work(
    config: JobConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchcap.outputs.sidecars.os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UsageError, match=r"beside the images in .*in \(read-only, or no permission\).*txt:FOLDER"):
        run(with_outputs(config, also=("txt",)))
    assert not JobFolder(Path(config.output)).part_paths()
    run(with_outputs(config, also=(f"txt:{tmp_path / 'texts'}",)))


@pytest.mark.parametrize("policy", [Existing.SKIP, Existing.APPEND])
def test_a_kill_between_the_note_and_the_files(
    config: JobConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Existing
) -> None:
    (tmp_path / "in/a.txt").write_text("mine")
    run(config)

    def killed(_contents: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_many", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(config, existing=policy)
    assert texts(tmp_path / "in") == {"a.txt": "mine"}
    converted(config, existing=policy)
    joined = "mine" if policy is Existing.SKIP else "mine, Caption of a.png."
    assert texts(tmp_path / "in") == {**TEXTS, "a.txt": joined}


def test_files_appear_part_by_part_and_a_resume_goes_on(config: JobConfig, run: Run, tmp_path: Path) -> None:
    asked = with_outputs(config, also=("txt", f"jsonl:{tmp_path / 'all.jsonl'}"))
    with pytest.raises(WorkerError):
        run(asked, dies_after=4)
    assert texts(tmp_path / "in").keys() == {"a.txt", "sub/b.txt"}
    assert not (tmp_path / "all.jsonl").exists(), "one file for all comes when all is done"
    message = run(asked).message
    assert texts(tmp_path / "in") == TEXTS
    assert "txt: 3 captions in 3 files beside the images; left out: 1 failed, 1 truncated; jsonl: 3 captions" in message
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 3


def test_a_place_that_fails_does_not_stop_the_captions(
    config: JobConfig, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, tried again at the end, and then ends the run; what is captioned is safe."""

    def refuses(_contents: object) -> None:
        raise StorageError("the disk is full")

    asked = with_outputs(config, also=("txt",))
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_many", refuses)
        with pytest.raises(StorageError, match="the disk is full"):
            run(asked)
    assert [record.getMessage() for record in caplog.records if "wait for the end" in record.getMessage()] == [
        "txt files wait for the end of this run: the disk is full"
    ]
    run(asked, dies_after=0)
    assert texts(tmp_path / "in") == TEXTS


def test_ids_that_lead_elsewhere_stay_in_the_tree(config: JobConfig, run: Run, tmp_path: Path) -> None:

    ids = ["../../x.png", "/etc/y", "..", "a\nb", "é" * 300, "https://z/1.jpg", "C:\\w.png"]
    write_table(tmp_path / "x.parquet", {"image": [encode(noise(20, 10))] * len(ids), "name": ids})
    config = replace(config, input=InputConfig((str(tmp_path / "x.parquet"),), id_column="name"))
    run(config)
    written = converted(config, f"txt:{tmp_path / 'tree'}")
    assert written.captions == len(ids)
    assert len(texts(tmp_path / "tree")) == len(ids)
    assert not list(tmp_path.glob("*.txt"))
    assert {"__/__/x.txt", "etc/y.txt", "__.txt", "a_b.txt", "https/z/1.txt", "C/_w.txt"} <= texts(
        tmp_path / "tree"
    ).keys()


def test_rows_of_one_id_do_not_overwrite_each_other(config: JobConfig, run: Run, tmp_path: Path) -> None:

    write_table(tmp_path / "x.parquet", {"image": [encode(noise(20, 10))] * 5, "name": ["same"] * 5})
    config = replace(config, input=InputConfig((str(tmp_path / "x.parquet"),), id_column="name"))
    run(config)
    for _time in range(2):
        written = converted(config, f"txt:{tmp_path / 'tree'}")
        assert (written.captions, written.collisions) == (1, 4)


def test_a_json_file_for_each_image(two_prompts: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in/a.json").write_text('{"tags": ["x"], "caption_short": "old"}')
    run(two_prompts)
    converted(two_prompts, "json", existing=Existing.APPEND)
    found = {name: json.loads(text) for name, text in texts(tmp_path / "in", ".json").items()}
    assert found["a.json"]["tags"] == ["x"]
    assert found["a.json"]["caption_short"] == "short of a.png."
    assert (found["sub/b.json"]["caption_long"], found["sub/b.json"]["width"]) == ("long of sub/b.jpg.", 20)


def test_modes_of_files_stay(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in/a.txt").write_text("mine")
    (tmp_path / "in/a.txt").chmod(0o640)
    run(config)
    converted(config, existing=Existing.REPLACE)
    assert (tmp_path / "in/a.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_in_the_place_of_a_file(config: JobConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in/a.txt").mkdir()
    run(config)
    with pytest.raises(UsageError, match=r"a\.txt is a folder, where a caption file is to be"):
        converted(config)


@pytest.mark.parametrize("form", ["txt", "json", "xmp"])
@pytest.mark.parametrize("policy", [Existing.SKIP, Existing.REPLACE, Existing.APPEND])
def test_a_file_that_is_too_large_is_left_alone(
    config: JobConfig, run: Run, tmp_path: Path, form: str, policy: Existing, caplog: pytest.LogCaptureFixture
) -> None:
    """It would fill the ledger; the other files are written."""
    path = tmp_path / f"in/a.{form}"
    path.write_bytes(b" " * ((1 << 24) + 1))
    run(config)
    written = converted(config, form, existing=policy)
    assert (written.captions, written.kept) == (2, 1)
    assert path.stat().st_size == (1 << 24) + 1
    assert (tmp_path / f"in/sub/b.{form}").is_file()
    assert f"a.{form} is left as it is: it is larger than 16 MiB" in caplog.text


def test_long_names_that_begin_alike(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """Also where a file system takes no longer names."""
    names = [f"{'a camera on the bridge over the river, ' * 2}{number}" for number in range(3)] + ["é" * 100]
    for name in names:
        (tmp_path / f"in/{name}.png").write_bytes(encode(noise(20, 10)))
    run(config)
    assert converted(config).captions == 7
    for name in names:
        assert (tmp_path / f"in/{name}.txt").read_text() == f"Caption of {name}.png."


@pytest.mark.parametrize("place", ["", ":{}/texts"])
def test_a_file_that_was_removed_is_written_again(config: JobConfig, run: Run, tmp_path: Path, place: str) -> None:
    """Also one of somebody else, which was kept until then."""
    folder = tmp_path / ("texts" if place else "in")
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("mine")
    asked = with_outputs(config, also=["txt" + place.format(tmp_path)])
    run(asked)
    (folder / "sub/b.txt").unlink()
    assert "txt: 2 captions in 2 files" in run(asked).message
    assert (folder / "sub/b.txt").read_text() == "Caption of sub/b.jpg."
    (folder / "a.txt").unlink()
    assert "txt: 3 captions in 3 files" in run(asked).message
    assert (folder / "a.txt").read_text() == "Caption of a.png."


def test_an_image_by_two_ways(config: JobConfig, run: Run, tmp_path: Path) -> None:
    """A linked folder: both rows have one file."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/way").symlink_to(tmp_path / "in/sub")
    inputs = (str(tmp_path / "in"), str(tmp_path / "other"))
    run(replace(config, input=InputConfig(inputs), placement=PlacementConfig(rows_per_part=100)))
    (written,) = convert(Path(config.output), ["txt"], OutputsConfig())
    assert written.captions == 5
    assert (tmp_path / "in/sub/b.txt").read_text() in ("Caption of sub/b.jpg.", "Caption of way/b.jpg.")
