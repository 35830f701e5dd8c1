"""The job folder: whole files, its names, its lock, and whose job it is."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import GenerationConfig, InputConfig, JobConfig
from batchcap.core import atomic
from batchcap.core.atomic import TEMPORARY_SUFFIX, Leftovers, atomic_file, write_atomic, write_many
from batchcap.core.errors import LockedError, NotSameJobError, StorageError, UsageError
from batchcap.core.records import CaptionRow, Shard
from batchcap.core.setting import settings_of
from batchcap.store import folder as store_folder
from batchcap.store.fingerprint import check_same_job, fingerprint_of, is_known_job
from batchcap.store.folder import JobFolder
from batchcap.store.job_file import UnknownFormatError
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock, read_holder
from batchcap.store.parts import write_part
from batchcap.store.place import Place
from batchcap.store.stats import StatsWriter
from tests.store.records import caption_row

CONFIG = JobConfig(InputConfig(("pictures",)), "out")


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.open_or_create(tmp_path / "out")


def test_a_folder_that_another_run_takes_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that begin at once: each tries whether it may make the folder, and removes what it has made to try."""
    path = tmp_path / "a" / "out"
    whole_sync = store_folder.sync
    taken = []

    def take_away_once(folder: Path) -> None:
        if not taken:
            taken.append(folder)
            shutil.rmtree(path)
        whole_sync(folder)

    monkeypatch.setattr(store_folder, "sync", take_away_once)
    assert JobFolder.open_or_create(path).state_path.is_dir()
    assert taken


def check(folder: JobFolder, config: JobConfig = CONFIG, bundle_id: str = "m", dtype: str = "bf16") -> None:
    check_same_job(folder, fingerprint_of(config, bundle_id, dtype), config)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_bytes(b"n" * (1 // 0))
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("x", b"new")]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is flushed to the disk and what is renamed, in order, each by its number in the file system."""
    found: list[tuple[str, int]] = []
    fsync, rename = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        found.append(("flushed", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        found.append(("renamed", old.stat().st_ino))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return found


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomic(path, b"{}"),  # summary.json and job.json
        lambda path: write_part(path, Shard(0, 0, 1), [caption_row(0)], None, {}),
        lambda path: StatsWriter(path).write(),
    ],
    ids=["text", "part", "statistics"],
)
def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, calls: list[tuple[str, int]], write: Callable[[Path], None]
) -> None:
    """Else a power cut could leave a name with nothing behind it, or a journal that has forgotten a part's rows."""
    path = tmp_path / "x"
    write(path)
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("flushed", file), ("renamed", file), ("flushed", folder)]


def test_a_new_folder_is_on_the_disk_with_its_name(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    folder = JobFolder.open_or_create(tmp_path / "out")
    assert calls == [("flushed", folder.path.stat().st_ino), ("flushed", tmp_path.stat().st_ino)]
    calls.clear()
    deep = JobFolder.open_or_create(tmp_path / "a" / "b" / "out").path
    parents = (deep, deep.parent, deep.parent.parent, tmp_path)
    assert calls == [("flushed", one.stat().st_ino) for one in parents]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "disk is full: free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "change the permissions"),
        (errno.EIO, "check it"),
    ],
)
def test_what_the_file_system_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(code, os.strerror(code))

    write_atomic(tmp_path / "x", b"old")
    monkeypatch.setattr(atomic, "sync", refuse)
    with pytest.raises(StorageError, match=rf"{advice}.*run the same command again"):
        write_atomic(tmp_path / "x", b"new")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("x", b"old")]


def test_leftovers_of_a_killed_run_go_and_nothing_else(folder: JobFolder) -> None:
    part = folder.part_path(0)
    with atomic_file(part) as temporary:
        temporary.write_bytes(b"whole")
        name = temporary.name
    for parent in (folder.path, folder.state_path):
        (parent / name).write_bytes(b"torn")
    (part.parent / ".mine").write_bytes(b"")
    folder.remove_leftovers()
    assert {path.name for path in folder.path.iterdir()} == {part.name, ".mine", "__batchcap"}
    assert not list(folder.state_path.iterdir())


def test_many_files_with_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_MAX_OPEN_FILES", 3)
    contents = {tmp_path / f"{number % 2}/{'long' * 12}{number}": bytes([number]) for number in range(8)}
    write_many(contents)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == contents


def test_leftovers_among_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the files that are written, what no process is writing goes; what is of other files may be another job's."""
    ours = [tmp_path / "a.txt", tmp_path / f"{'long' * 12}.txt"]
    contents = dict.fromkeys((*ours, tmp_path / "b.txt"), b"new")

    def killed(_folder: Path) -> None:
        raise KeyboardInterrupt

    def temporaries() -> list[str]:
        return sorted(path.name for path in tmp_path.glob(f".*{TEMPORARY_SUFFIX}"))

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync_all_with", killed)
        patch.setattr(atomic, "_unlink", lambda _path: None)
        with pytest.raises(KeyboardInterrupt):
            write_many(contents)
    left = temporaries()
    assert len(left) == 3
    with atomic_file(ours[0]) as written:
        Leftovers().remove(ours)
        assert temporaries() == sorted([written.name, next(name for name in left if name.startswith(".b.txt."))])
        written.write_bytes(b"whole")
    Leftovers().remove([tmp_path / "gone/a.txt"])


def test_a_folder_is_made_and_found_again(tmp_path: Path) -> None:
    made = JobFolder.open_or_create(tmp_path / "a/b/out")
    assert JobFolder.open_or_create(made.path) == made == JobFolder.open_existing(made.path)


def test_other_peoples_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("x")
    with pytest.raises(UsageError, match="holds other files"):
        JobFolder.open_or_create(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        JobFolder.open_or_create(tmp_path / "diary.txt")
    with pytest.raises(UsageError, match="not a job folder"):
        JobFolder.open_existing(tmp_path)


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    """Arrow and SQLite take names in UTF-8 only."""
    with pytest.raises(UsageError, match="is not UTF-8"):
        JobFolder.open_or_create(tmp_path / os.fsdecode(b"gr\xf6\xdfe"))
    assert not list(tmp_path.iterdir())


def test_parts_are_in_order_beyond_the_width_of_their_number(folder: JobFolder) -> None:
    for seq in (100000, 2, 99999):
        folder.part_path(seq).touch()
    assert folder.part_paths() == [folder.part_path(seq) for seq in (2, 99999, 100000)]


HOLD = """
import subprocess, sys
from pathlib import Path
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock
with job_lock(JobFolder(Path(sys.argv[1]))):
    worker = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)  # outlives the run, as a worker may
    print(worker.pid, flush=True)
    sys.stdin.read()
"""


def test_the_lock_names_its_holder_and_goes_with_it(folder: JobFolder) -> None:
    assert read_holder(folder) is None
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        try:
            holder = read_holder(folder)
            assert holder is not None
            assert holder.pid == run.pid
            with pytest.raises(LockedError, match=rf"process {run.pid} on .*wait for it"), job_lock(folder):
                pass
            run.kill()
            run.wait()
            assert read_holder(folder) is None
            with job_lock(folder):
                assert read_holder(folder) is not None
        finally:
            os.kill(worker, 9)
    assert read_holder(folder) is None


def test_an_error_of_the_job_is_not_taken_for_one_of_the_lock(folder: JobFolder) -> None:
    with pytest.raises(FileNotFoundError), job_lock(folder):
        Path(folder.path / "nothing").read_bytes()


def test_the_same_job_goes_on(folder: JobFolder) -> None:
    check(folder)
    before = folder.job_path.read_bytes()
    check(folder)
    check(folder, replace(CONFIG, placement=replace(CONFIG.placement, slots=3)))
    assert folder.job_path.read_bytes() == before
    assert json.loads(before)["configuration"] == json.loads(json.dumps(CONFIG.to_dict()))


def finish_a_row(folder: JobFolder) -> None:
    with closing(Journal.open(folder.journal_path)) as journal:
        journal.add([(0, CaptionRow(id="a", source="a", row=0))])


def test_a_job_without_a_finished_row_may_still_be_mended(folder: JobFolder) -> None:
    check(folder, replace(CONFIG, input=InputConfig(("pictures",), image_column="imgae")))
    check(folder)
    with closing(Journal.open(folder.journal_path)):
        check(folder, replace(CONFIG, generation=GenerationConfig(seed=7)))
    check(folder)
    finish_a_row(folder)
    with pytest.raises(NotSameJobError, match="--seed: was 0, now 7"):
        check(folder, replace(CONFIG, generation=GenerationConfig(seed=7)))
    check(folder)


def test_another_job_is_told_what_differs(folder: JobFolder) -> None:
    check(folder)
    finish_a_row(folder)
    other = replace(CONFIG, generation=GenerationConfig(prompt="Say it.", seed=7))
    with pytest.raises(NotSameJobError) as caught:
        check(folder, other, bundle_id="n")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["--model", "--prompt", "--seed"]
    assert lines[-2].strip() == "--seed: was 0, now 7"
    assert "another --output" in lines[-1]


def test_of_long_values_the_difference_is_shown(folder: JobFolder) -> None:
    long = "Describe everything. " * 30
    check(folder, replace(CONFIG, generation=GenerationConfig(prompt=long + "In German.")))
    finish_a_row(folder)
    with pytest.raises(NotSameJobError, match=r"was ….*In German\..*now ….*In French\."):
        check(folder, replace(CONFIG, generation=GenerationConfig(prompt=long + "In French.")))


def test_every_setting_that_decides_captions_is_in_the_fingerprint() -> None:
    names = set(fingerprint_of(CONFIG, "m", "fp32"))
    decides = {name.replace("_", "-") for name in (*CONFIG.to_dict()["generation"], *CONFIG.to_dict()["input"])}
    vision = {one.key.replace("_", "-") for one in settings_of(CONFIG.vision).values()}
    assert names == (decides - {"inputs", "allow-remote"}) | vision | {"model"}


@pytest.mark.parametrize("version", [1, 99])
def test_another_format_is_refused(folder: JobFolder, version: int) -> None:
    check(folder)
    content = json.loads(folder.job_path.read_text())
    folder.job_path.write_text(json.dumps({**content, "format_version": version}))
    with pytest.raises(UsageError, match=f"has format {version}, .*use the batchcap that made it"):
        check(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "{", "{}", '{"format_version": 3}', '{"format_version": 3, "fingerprint": 5}']
)
def test_a_damaged_job_file_is_named(folder: JobFolder, content: str) -> None:
    folder.job_path.write_text(content)
    with pytest.raises(UsageError, match=r"job\.json can't be read"):
        check(folder)


def test_deleted_state_is_not_made_anew_under_old_parts(folder: JobFolder) -> None:
    check(folder)
    folder.part_path(0).touch()
    with pytest.raises(UsageError, match=r"journal\.sqlite has been deleted"):
        check(folder)
    folder.job_path.unlink()
    with pytest.raises(UsageError, match=r"job\.json has been deleted"):
        check(folder)


def test_a_path_that_is_not_text_is_the_same_next_time(folder: JobFolder) -> None:
    config = replace(CONFIG, input=InputConfig(("caf\udce9",), image_root="/caf\udce9"))
    check(folder, config)
    check(folder, config)


@pytest.mark.parametrize("fingerprint", ["null", "3", '"text"', "[1]", "[" * 100_000])
def test_a_description_with_another_content_says_what_to_do(folder: JobFolder, fingerprint: str) -> None:
    check(folder)
    folder.job_path.write_text(f'{{"format_version": 2, "fingerprint": {fingerprint}}}')
    with pytest.raises(UsageError, match=r"job\.json can't be read .*choose another --output"):
        check(folder)


ABSOLUTE = JobConfig(InputConfig(("/a", "b")), "/out", "/model")


@pytest.mark.parametrize(
    ("stored", "given", "is_known"),
    [
        (ABSOLUTE, replace(ABSOLUTE, output="there"), True),
        (ABSOLUTE, replace(ABSOLUTE, input=InputConfig(("b",))), True),
        (ABSOLUTE, replace(ABSOLUTE, input=InputConfig(("b",)), output="there"), False),
        (ABSOLUTE, replace(ABSOLUTE, input=InputConfig(("c",))), False),
        (replace(ABSOLUTE, model="m"), replace(ABSOLUTE, model="m"), True),
        (replace(ABSOLUTE, model="m"), replace(ABSOLUTE, model="m", output="there"), False),
        (replace(ABSOLUTE, model=None), ABSOLUTE, False),
    ],
)
def test_whose_folder_it_is_before_the_model_is_known(
    folder: JobFolder, stored: JobConfig, given: JobConfig, is_known: bool
) -> None:
    """Relative names may mean something else from another working folder."""
    assert is_known_job(folder, given), "there is no job in it yet"
    check(folder, stored)
    assert is_known_job(folder, given) is is_known


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"configuration": 3}', '{"configuration": {"input": 1}}'])
def test_of_a_damaged_description_nothing_is_known(folder: JobFolder, content: str) -> None:
    folder.job_path.write_text(content)
    assert not is_known_job(folder, CONFIG)
    folder.job_path.unlink()
    folder.part_path(0).touch()
    assert not is_known_job(folder, CONFIG)


@pytest.mark.parametrize("name", ["__batchcap", "_batchcap"])
def test_a_job_folder_has_not_the_name_of_its_inside(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name, tmp_path / name / "x" / ".."):
        with pytest.raises(UsageError, match="is reserved for a folder inside job folders"):
            Place.of(path)


def test_runs_that_begin_at_one_place_do_not_refuse_each_other(tmp_path: Path) -> None:
    """Their trials make and remove the same folders."""
    together = threading.Barrier(4, timeout=60)

    def look() -> set[str]:
        found = set[str]()
        for number in range(100):
            together.wait()
            found.add(Place.of(tmp_path / str(number) / "a" / "out").path.name)
        return found

    with ThreadPoolExecutor(4) as threads:
        assert {"out"} == set().union(*(one.result() for one in [threads.submit(look) for _ in range(4)]))


def test_a_folder_that_comes_and_goes_is_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run's trial may remove it and make it again between any two questions."""
    (tmp_path / "a").mkdir()
    asked = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: Path(path) != tmp_path / "a" and asked(path))
    assert Place.of(tmp_path / "a" / "out").missing == (tmp_path / "a" / "out",)


@pytest.mark.parametrize("content", [{"fingerprint": {}}, {}])
def test_a_later_format_is_told_before_anything_else(folder: JobFolder, content: dict[str, object]) -> None:
    folder.job_path.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(UnknownFormatError, match=r"has format 99.*use the batchcap that made it"):
        check(folder)
