"""Random jobs, ended at any durable step, resumed, retried, changed under way: at the end every row is right.

The engine has no model: a caption tells the image's content and the setting that made it, so that a caption of
another image, or one made with settings that its part does not tell, shows.
"""

import gc
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset  # loaded, with pandas, at the first table that is read: not by each process that is forked
import pyarrow.parquet as pq
import pytest

from batchcap.config import GenerationConfig, InputConfig, JobConfig, OnChanged, PlacementConfig, ResumeConfig
from batchcap.core.errors import BatchcapError, ErrorKind, ExitCode
from batchcap.core.records import Caption, Failure, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.engines.fake import FakeEngine
from batchcap.inputs.encoded import digest, read_encoded
from batchcap.job import recorder
from batchcap.job import run as job
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from tests.fake_engine import SilentProgress, fake_bundle

pytestmark = pytest.mark.slow

SEEDS = range(40)
CONTENTS = ("cat", "bad one", "long tale", "dog", "long story", "bad two", "hen")
FEW, ENOUGH = 10, 200
KILLED, BROKEN = 77, 99
IN_MEMORY = Path("/dev/shm")


def told(request: Request) -> Outcome:
    """A caption that tells what it is of and how it was made."""
    content = read_encoded(request.row)
    if content.startswith(b"bad"):
        return Outcome(request, Failure(request.index, ErrorKind.CORRUPT, "cut"))
    most = request.sampling.max_new_tokens
    is_cut = content.startswith(b"long") and most == FEW
    captions = tuple(
        Caption(
            index=request.index,
            token_ids=(1,),
            text=f"{prompt.name}|{content.decode()}|{most}",
            finish_reason=FinishReason.STOP,
            verdict=Verdict.TRUNCATED if is_cut else Verdict.OK,
            prompt_tokens=9,
            visual_tokens=4,
            prefill_ms=3.0,
            decode_ms=5.0,
        )
        for prompt in request.prompts
    )
    return Outcome(request, captions, ImageFacts(64, 48, digest(content), 1.0, 2.0))


def run(config: JobConfig, killed_at: int) -> int:
    """Run a job in a process of its own, which ends by itself at a durable step; 0: never. Its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = BROKEN
    try:
        _end_at(killed_at)
        summary = job.run_job(config, SilentProgress(), lambda _config: FakeEngine(told, reads_images=True))
        code = int(summary.exit_code)
    except BatchcapError as error:
        code = int(error.exit_code)
    finally:
        os._exit(code)


def _end_at(step: int) -> None:
    """End this process before or after so many transactions and file replacements."""
    left = step
    transaction, put = Journal.transaction, Path.replace

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(KILLED)

    @contextmanager
    def counted_transaction(journal: Journal) -> Iterator[Any]:
        count()
        with transaction(journal) as connection:
            yield connection
        count()

    def counted_put(path: Path, target: Path) -> Path:
        count()
        result = put(path, target)
        count()
        return result

    Journal.transaction = counted_transaction  # type: ignore[method-assign]
    Path.replace = counted_put  # type: ignore[method-assign, assignment]


class Story:
    """One job and what happens to it, all decided by a seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.inputs = folder / "in"
        self.inputs.mkdir()
        self.contents: dict[str, str] = {}
        for _image in range(self.chance.randint(3, 9)):
            self.put(f"p{len(self.contents)}.png")
        self.cells = [self.chance.choice(CONTENTS) for _row in range(self.chance.choice((0, 0, 1, 4)))]
        if self.cells:
            self.write_table()
        prompts = self.chance.choice(("say", {"a": "x", "b": "y"}))
        self.config = JobConfig(
            InputConfig((str(self.inputs),), keep_columns=("*",) if self.cells else ()),
            str(folder / "out"),
            generation=GenerationConfig(prompt=prompts, max_new_tokens=FEW),  # type: ignore[arg-type]
        )

    def put(self, name: str) -> None:
        content = self.chance.choice(CONTENTS) + self.chance.choice(("", " 1", " 2"))
        self.contents[name] = content
        (self.inputs / name).write_text(content)

    def write_table(self) -> None:
        columns = {"image": [cell.encode() for cell in self.cells], "lab": list(range(len(self.cells)))}
        pq.write_table(pa.table(columns), self.inputs / "p4x.parquet")

    def config_of_a_run(self) -> JobConfig:
        """A plain one, one that retries failures, one that retries with other settings, or one after changes."""
        choices = [OnChanged.KEEP, OnChanged.RECAPTION]
        resume, words = self.chance.choice(
            (
                (ResumeConfig(), self.config.generation),
                (ResumeConfig(("failed",), OnChanged.RECAPTION), self.config.generation),
                (ResumeConfig((), self.chance.choice(choices)), self.config.generation),
                (
                    ResumeConfig(("failed", "truncated"), self.chance.choice(choices)),
                    replace(self.config.generation, max_new_tokens=ENOUGH),
                ),
            )
        )
        limits = replace(self.config.limits, limit=self.chance.choice((0, 0, 0, 2, 5)))
        placement = PlacementConfig(rows_per_part=self.chance.randint(1, 5))
        return replace(self.config, resume=resume, generation=words, limits=limits, placement=placement)

    def happen(self) -> None:
        """Images and rows change or are added; sometimes the journal is one of an earlier batchcap."""
        for _change in range(self.chance.randint(0, 2)):
            is_new = self.chance.random() < 0.5
            self.put(f"p{len(self.contents) if is_new else self.chance.randrange(len(self.contents))}.png")
        if self.cells and self.chance.random() < 0.5:
            self.cells += self.chance.choices(CONTENTS, k=self.chance.randint(0, 3))
            if self.chance.random() < 0.2:
                self.cells[self.chance.randrange(len(self.cells))] = self.chance.choice(CONTENTS)
            self.write_table()
        journal = JobFolder(Path(self.config.output)).journal_path
        if self.chance.random() < 0.2 and journal.exists():
            opened = Journal.open(journal)
            with opened.transaction() as connection:
                connection.execute("UPDATE sources SET size_bytes = 0, mtime_ns = 0 WHERE kind = 'image'")
                if not opened.has_reopened():
                    connection.execute("DROP TABLE reopened")
                    connection.execute("PRAGMA user_version = 0")
            opened.close()


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """What is here is not looked through for garbage by each process that is forked, which would copy all of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where that is a folder: no power is cut here, and a disk takes longer than all else."""
    if not os.access(IN_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as made:
        yield Path(made)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_is_right_at_the_end(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    monkeypatch.setattr(job, "bundle_opens_thinking", lambda _bundle: False)
    monkeypatch.setattr(recorder, "FLUSH_ROWS", 2)
    story = Story(folder, seed)
    assert run(replace(story.config, placement=PlacementConfig(rows_per_part=story.chance.randint(1, 5))), 0) == 0
    for _run in range(story.chance.randint(1, 6)):
        story.happen()
        code = run(story.config_of_a_run(), story.chance.choice((0, 0, *range(1, 40))))
        assert code in (KILLED, *map(int, ExitCode)), f"exit code {code}"
        assert code != ExitCode.UNEXPECTED
    last = replace(story.config, resume=ResumeConfig(("failed",), OnChanged.RECAPTION))
    assert run(last, 0) == ExitCode.COMPLETE
    assert run(last, 0) == ExitCode.COMPLETE, "the first may have had a retry to go on with"
    _assert_right(story)


def _assert_right(story: Story) -> None:
    folder = JobFolder(Path(story.config.output))
    names = [f"caption_{name}" if name else "caption" for name in story.config.generation.prompt_names]
    expected = {**story.contents, **{f"p4x.parquet:{row}": cell for row, cell in enumerate(story.cells)}}
    found = dict[str, str]()
    schemas = set()
    for path in folder.part_paths():
        table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
        schemas.add(tuple(table.schema.names))
        rows = table.to_pylist()
        counts = json.loads(metadata[b"batchcap.tally"])
        assert (counts["rows"], counts["ok"]) == (len(rows), sum(row["status"] == "ok" for row in rows))
        told = {FEW, *(one["max-new-tokens"] for one in json.loads(metadata.get(b"batchcap.retries", b"[]")))}
        for row in rows:
            assert row["id"] not in found, "a row is there twice"
            content = found[row["id"]] = expected[row["id"]]
            assert (row["status"] == "failed") is content.startswith("bad"), row
            if row["status"] == "ok":
                assert {row[name].split("|")[1] for name in names} == {content}, row
                assert {int(row[name].split("|")[2]) for name in names} <= told, "a setting that the part does not tell"
            if story.cells:
                assert row["lab"] == (None if row["id"].endswith(".png") else row["row"])
    assert found.keys() == expected.keys()
    assert len(schemas) == 1
    journal = Journal.open_to_read(folder.journal_path)
    assert not journal.has_reopened()
    assert list(journal.query("SELECT * FROM rows")) == []
    journal.close()
