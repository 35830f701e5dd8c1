"""The short form of `make fuzz`, always with the same inputs; and that a crash would be noticed."""

import os
import random
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig, JobConfig, PlacementConfig
from batchcap.core.errors import UsageError
from batchcap.store.folder import JobFolder
from tests.fake_engine import fake_bundle
from tests.fuzz import child, harness, registry
from tests.fuzz.child import Outcome
from tests.fuzz.harness import Reader, fuzz, save
from tests.fuzz.jobs import JOBS, assert_each_row_once, run_once
from tests.fuzz.mutations import DAMAGES, mutated
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Target
from tests.fuzz.targets import READERS
from tests.inputs.parquets import write_table

INPUTS = 300
JOB_INPUTS = 5


@pytest.mark.parametrize("name", [target.name for target in READERS])
def test_damaged_inputs_end_as_errors_of_ours(name: str) -> None:
    is_lenient = TARGETS[name].is_lenient
    inputs = INPUTS // 4 if is_lenient else INPUTS
    findings = fuzz(name, seed=1, most_inputs=inputs)
    assert not findings.crashes, next(iter(findings.crashes))
    assert findings.outcomes.total() == inputs
    assert findings.outcomes[Outcome.ACCEPTED] > inputs / 50, "damage must get through the first check"
    assert findings.outcomes[Outcome.REJECTED] > (0 if is_lenient else inputs / 10)


@pytest.mark.parametrize("name", [target.name for target in JOBS])
def test_jobs_of_damaged_inputs_have_each_row_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "START_METHOD", "fork")  # to start anew takes longer than all jobs
    monkeypatch.setattr(child, "MEMORY_BYTES", child.MEMORY_BYTES + psutil.Process().memory_info().vms)
    findings = fuzz(name, seed=1, most_inputs=JOB_INPUTS)
    assert not findings.crashes, next(iter(findings.crashes))
    assert findings.outcomes.total() == JOB_INPUTS


@pytest.mark.parametrize("lost", ["row", "caption", "part"])
def test_a_lost_row_of_a_job_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    monkeypatch.setattr("batchcap.job.run.load_bundle", lambda _model: fake_bundle())
    path = write_table(tmp_path / "x.parquet", {"image": [b"one", b"two", b"three"]})
    config = JobConfig(InputConfig((str(path),)), str(tmp_path / "out"), placement=PlacementConfig(rows_per_part=2))
    run_once(config)
    assert len(assert_each_row_once(config)) == 3
    part = JobFolder(tmp_path / "out").part_path(0)
    table = pq.read_table(part)
    if lost == "part":
        part.unlink()
    else:
        captions = table["caption"].to_pylist()[::-1]
        table = (
            table.slice(1)
            if lost == "row"
            else table.set_column(table.schema.get_field_index("caption"), "caption", [captions])
        )
        pq.write_table(table, part)
    with pytest.raises(AssertionError):
        assert_each_row_once(config)


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "found").iterdir()), ids=lambda path: path.name)
def test_what_has_crashed_once_does_so_no_more(path: Path) -> None:
    with Reader(path.name.partition("-")[0]) as reader:
        outcome, why = reader.read(path.read_bytes())
    assert outcome is not Outcome.CRASHED, why


def test_the_same_seed_gives_the_same_inputs() -> None:
    inputs = [b"", b"x", bytes(range(256)) * 4]
    first, again = ([mutated(random.Random(seed), inputs) for seed in range(200)] for _run in range(2))
    assert first == again
    assert len(set(first)) > 100


@pytest.mark.parametrize("damage", dict.fromkeys(DAMAGES), ids=lambda damage: damage.__name__)
def test_any_input_can_be_damaged(damage: object) -> None:
    changed = 0
    for seed in range(100):
        for content in (b"", b"x", bytes(range(256)) * 4):
            damaged = bytearray(content)
            damage(random.Random(seed), damaged, [b"", b"other"])
            changed += damaged != content
    assert changed > 80


def crash(content: bytes, path: Path) -> None:
    """A target that does what a test wants."""
    if content == b"segfault":
        os.kill(os.getpid(), 11)
    if content == b"hang":
        time.sleep(60)
    if content == b"memory":
        bytearray(8 << 30)
    if content == b"unexpected":
        raise KeyError(content)
    if content == b"refused":
        raise UsageError("no")


@pytest.fixture
def _crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TARGETS, "jobfile", Target("jobfile", lambda: [b"good"], crash))
    # The child imports its targets anew; this one it gets by being a copy of this process.
    monkeypatch.setattr(harness, "START_METHOD", "fork")
    monkeypatch.setattr(harness, "TIMEOUT_S", 2.0)


@pytest.mark.usefixtures("_crashing")
def test_each_kind_of_crash_is_noticed_and_the_next_input_is_read(tmp_path: Path) -> None:
    with Reader("jobfile") as reader:
        assert reader.read(b"good") == (Outcome.ACCEPTED, "")
        assert reader.read(b"refused") == (Outcome.REJECTED, "no")
        for content, part in (
            (b"segfault", "ended with code -11"),
            (b"unexpected", "KeyError"),
            (b"hang", "no end within 2 s"),
            (b"memory", "MemoryError"),
        ):
            outcome, why = reader.read(content)
            assert outcome is Outcome.CRASHED
            assert part in why
            assert reader.read(b"good") == (Outcome.ACCEPTED, "")
    findings = harness.Findings(crashes={"why": b"segfault"})
    (path,) = save(findings, "jobfile", tmp_path / "saved")
    assert path.read_bytes() == b"segfault"
    assert path.with_name(f"{path.name}.txt").read_text() == "why"
