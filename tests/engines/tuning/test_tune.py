"""A tuning takes no more memory than is free, and times the same images, none of them twice."""

import os
import time
from itertools import islice
from pathlib import Path

import pytest

from batchcap.core.errors import UsageError, WorkerError
from batchcap.engines.config import EngineConfig
from batchcap.engines.profiles import Settings
from batchcap.engines.tuning import tune
from batchcap.engines.tuning.measure import MAX_ROWS, MIN_ROWS, Timing, Track, rows_for
from batchcap.engines.tuning.search import Trial
from batchcap.inputs.encoded import digest
from batchcap.model.bundle import Bundle
from tests.inputs.parquets import data_of


@pytest.fixture
def course(tiny_bundle_int4: Bundle) -> tune._Course:
    return tune._Course(tiny_bundle_int4, Track(tiny_bundle_int4), ends_s=0.0, budget_s=60.0, rows=4)


def test_the_memory_must_be_enough(tiny_bundle_int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(UsageError, match=r"not enough memory to measure: .* 1 MiB are free: end other programs"):
        tune.tune(tiny_bundle_int4, 1.0, rounded_vision=False)
    assert not list(tmp_path.iterdir())


def test_a_candidate_that_does_not_fit_is_passed_over(course: tune._Course, monkeypatch: pytest.MonkeyPatch) -> None:
    need = tune.memory_need(EngineConfig.of_job(course.bundle, tune._everyday_job()))
    monkeypatch.setattr(tune, "available_memory_bytes", lambda: int(need.total(20) / 0.9))
    trial = course.measure(Settings(slots=32), 1.0)
    assert not trial.row_s
    assert "MiB: too much for the free memory" in trial.note


def test_a_candidate_whose_worker_ends_is_passed_over(course: tune._Course, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> Timing:
        raise WorkerError("the decoder 1 process was killed by signal 9.")

    monkeypatch.setattr(course.track, "time", fail)
    trial = course.measure(Settings(), 1.0)
    assert (trial.row_s, trial.note) == ([], "failed")


def test_images_are_the_same_ones_and_never_equal(course: tune._Course) -> None:
    first, again = (list(islice(course.track._requests(6), 6)) for _time in range(2))
    assert len({digest(data_of(request.row) or b"") for request in (*first, *again)}) == 12
    assert [request.index for request in (*first, *again)] == list(range(12))
    for one, other in zip(first, again, strict=True):
        data, others = data_of(one.row), data_of(other.row)
        assert data
        assert others
        assert data[:-1] == others[: len(data) - 1]


@pytest.mark.parametrize(
    ("affordable", "rows"),
    [(0.0, MIN_ROWS), (5.9, 5), (7.9, 7), (8, 16), (20, 16), (25, 32), (50, 48), (1e9, MAX_ROWS)],
)
def test_how_many_images_are_timed(affordable: float, rows: int) -> None:
    assert rows_for(affordable) == rows


def test_time_is_left_for_what_a_candidate_and_one_more_can_take_at_most(course: tune._Course) -> None:
    course.ends_s = time.perf_counter() + 200
    course.overhead_s = 20  # loading, and putting away
    assert course.has_time(15)  # for each of four images, twice
    assert not course.has_time(25)


def test_what_makes_a_result_uncertain_is_told() -> None:
    before = tune._Processor(busy_s=100.0, own_s=10.0, wall_s=0.0)
    cpus = os.cpu_count() or 1
    quiet = tune._Processor(busy_s=100.0 + 5 * cpus, own_s=10.0 + 5 * cpus, wall_s=10.0)
    noisy = tune._Processor(busy_s=100.0 + 8 * cpus, own_s=10.0 + 5 * cpus, wall_s=10.0)
    assert quiet.others_share_since(before) == 0
    assert noisy.others_share_since(before) == pytest.approx(0.3)
    assert tune._Processor(busy_s=None, own_s=9.0, wall_s=10.0).others_share_since(before) == 0
    trial = Trial(Settings(), [1.0])
    texts = [tune.TuneResult([trial], trial, 0, Path("x.json"), 4, share).to_text() for share in (0.0, 0.3)]
    assert "so few images" in texts[0]
    assert "so few images" not in tune.TuneResult([trial], trial, 0, Path("x.json"), 16, 0.0).to_text()
    assert "other programs" not in texts[0]
    assert "other programs took 30% of the processor meanwhile" in texts[1]


def test_the_processor_is_read() -> None:
    before = tune._Processor.now()
    while (after := tune._Processor.now()).own_s < before.own_s + 0.05:
        sum(range(10000))
    assert after.busy_s > before.busy_s
    assert 0 <= after.others_share_since(before) <= 1
