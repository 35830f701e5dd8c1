"""What an earlier batchcap left behind is read, reported on and resumed: job folders, bundles, tuning and job files."""

import dataclasses
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.commands.jobfile import load_job_file
from batchcap.config import OperationsConfig, OutputsConfig
from batchcap.engines import tuned as record
from batchcap.model.bundle import Bundle
from batchcap.report.status import read_status
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import part_is_complete
from batchcap.store.place import Place
from batchcap.store.shard_state import finished_rows
from tests.compat.scenes import BUNDLE, INPUTS, JOBS, ROOT, Scene
from tests.e2e.command import batchcap
from tests.e2e.process import leftovers, read_summary, run, snapshot

DATA = Path(__file__).parents[1] / "data"
FORMATS = sorted(DATA.glob("format-*"), key=lambda path: int(path.name.partition("-")[2]))

OF_SQLITE = ("lock", "holder.json", "journal.sqlite-shm", "journal.sqlite-wal")

# What job files have had no word for when they were written, and what they mean by that.
NEW_TABLES = {
    name: json.loads(json.dumps(dataclasses.asdict(table)))
    for name, table in {"outputs": OutputsConfig(), "operations": OperationsConfig()}.items()
}
NEW_KEYS = {
    "input": {
        "images": None,
        "where": None,
        "sample": 0,
        "sample_seed": 0,
        "allow_remote": False,
        "shard": None,
    }
}


@dataclasses.dataclass(frozen=True)
class Past:
    """A copy of one format's data in a place of its own."""

    root: Path

    def output(self, scene: Scene) -> Path:
        """The job folder."""
        return self.root / "jobs" / scene.name

    def finished(self, scene: Scene) -> dict[str, list[Any]]:
        """Rows that have ended, in a part or in the journal: the values of their captions and the status, by id."""
        folder, found = JobFolder(self.output(scene)), dict[str, list[Any]]()
        names = [option.partition("=")[0] for option in scene.options if option.startswith(("short=", "long="))]
        with closing(Journal.open(folder.journal_path)) as journal:
            for shard in journal.shards():
                has_part = part_is_complete(folder.part_path(shard.seq), shard)
                for _index, row in finished_rows(folder, journal, shard, has_part=has_part):
                    captions = [answer.caption for answer in row.answers]
                    captions += [None] * (len(names or [""]) - len(captions))
                    found[row.id] = [*captions, row.status]
        return found


def rows_of(output: Path) -> list[dict[str, Any]]:
    """The rows in the parts of a job."""
    return list(pa.concat_tables(map(pq.read_table, JobFolder(output).part_paths())).to_pylist())


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def past(request: pytest.FixtureRequest, tmp_path: Path) -> Past:
    """The data of a format, as if it had been made in this place."""
    data: Path = request.param
    for name in (BUNDLE, INPUTS, "jobs"):
        shutil.copytree(data / name, tmp_path / name)
    for name, mtime_ns in json.loads((data / "mtimes.json").read_text()).items():
        os.utime(tmp_path / name, ns=(mtime_ns, mtime_ns))
    for journal in (tmp_path / "jobs").rglob("journal.sqlite"):
        with closing(sqlite3.connect(journal)) as connection, connection:
            paths = [(path, os.fsencode(tmp_path) + path[len(str(ROOT)) :]) for (path,) in _paths(connection)]
            assert paths
            connection.executemany("UPDATE sources SET path = ?2 WHERE path = ?1", paths)
    return Past(tmp_path)


def _paths(connection: sqlite3.Connection) -> list[tuple[bytes]]:
    return connection.execute("SELECT path FROM sources").fetchall()


def test_there_is_data_of_every_format() -> None:
    assert [path.name for path in FORMATS] == ["format-2"]
    names = {scene.name for scene in JOBS}
    assert all({path.name for path in (data / "jobs").iterdir()} == names for data in FORMATS)


@pytest.mark.parametrize("scene", JOBS, ids=lambda scene: scene.name)
def test_a_job_folder_is_read_and_nothing_in_it_changes(past: Past, scene: Scene) -> None:
    before = snapshot(past.output(scene), OF_SQLITE)
    status = read_status(past.output(scene))
    assert status.total_rows == {1: 12 if scene.inputs[0] == "rows.parquet" else 21, 2: 33}[len(scene.inputs)]
    assert (status.remaining == 0) == (scene.kill_after is None)
    assert status.counts.rows >= (0 if scene.retry else scene.kill_after or 0)
    assert batchcap("status", past.output(scene)).returncode == 0
    page = past.root / "page.html"
    done = batchcap("report", past.output(scene), "--to", page)
    assert done.returncode == 0, done.stderr
    assert page.read_text().count("<img") > 3
    assert snapshot(past.output(scene), OF_SQLITE) == before


def test_a_refused_command_takes_nothing_from_an_old_job(past: Past) -> None:
    """A place is new, and tidied up after a refusal, only where there is no job folder of any format."""
    scene = next(one for one in JOBS if one.name == "finished-files")
    place = Place.of(past.output(scene))
    assert not place.is_new
    before = snapshot(past.output(scene))
    place.remove_if_new()
    assert snapshot(past.output(scene)) == before


@pytest.mark.slow
@pytest.mark.parametrize("scene", JOBS, ids=lambda scene: scene.name)
def test_a_job_is_resumed_by_its_own_command(past: Past, scene: Scene) -> None:
    output = past.output(scene)
    finished = past.finished(scene)
    resumed = run(*scene.arguments(past.root, output), *(scene.retry if scene.retry else ()))
    assert resumed.done_before == (None if scene.kill_after is None else len(finished))
    rows = rows_of(output)
    assert read_summary(output)["remaining"] == 0
    assert not leftovers(output)
    fresh = past.root / "fresh"
    run(*scene.arguments(past.root, fresh), *scene.retry[:-2])
    made_now = rows_of(fresh)
    assert [row["id"] for row in rows] == [row["id"] for row in made_now]
    assert {row["attempts"] for row in rows} == {2 if scene.retry else 1}
    texts = [name for name in made_now[0] if name.startswith(("caption", "status"))]
    for row, new in zip(rows, made_now, strict=True):
        # What was finished was written on another machine, perhaps of another kind.
        assert [row[name] for name in texts] == finished.get(row["id"], [new[name] for name in texts])


@pytest.mark.parametrize("data", FORMATS, ids=lambda path: path.name)
def test_a_bundle_is_loaded(data: Path) -> None:
    stored = json.loads((data / BUNDLE / "bundle.json").read_text())
    assert Bundle.load(data / BUNDLE).id == stored["id"]


@pytest.mark.parametrize("data", FORMATS, ids=lambda path: path.name)
def test_a_tuning_file_is_read(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads((data / "tuning.json").read_text())
    key = record.TuningKey(**stored["made_for"])
    monkeypatch.setattr(record.TuningKey, "here", classmethod(lambda _cls, _bundle_id: key))
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path))
    key.path.parent.mkdir(parents=True)
    shutil.copy(data / "tuning.json", key.path)
    tuned = record.read_tuned(key.bundle)
    assert tuned is not None
    assert (tuned.settings.slots, tuned.settings.vision_backend, tuned.speedup) == (12, "onnx", 1.25)


@pytest.mark.parametrize("data", FORMATS, ids=lambda path: path.name)
def test_a_job_file_means_what_it_meant(data: Path) -> None:
    folder = (data / "job-files").resolve()
    expected = json.loads((folder / "expected.json").read_text().replace("@/", f"{folder}/"))
    assert expected
    for name, content in expected.items():
        config = load_job_file(folder / name)
        given = content.pop("given")
        limits = content["limits"]
        limits["image_timeout_s"] = limits.pop("picture_timeout_s")  # its name when the file was written
        found = json.loads(json.dumps(config.to_dict()))
        assert {name: found.pop(name) for name in found.keys() - content.keys()} == NEW_TABLES, "as if not there"
        assert found == {name: {**one, **NEW_KEYS[name]} if name in NEW_KEYS else one for name, one in content.items()}
        assert sorted(config.explicit or ()) == given
