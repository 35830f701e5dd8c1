"""A caption depends on its image and the settings alone: never on neighbours, workers, slots, threads or order."""

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest

from batchcap.model.bundle import Bundle
from tests.e2e.conftest import SMALL, Job
from tests.e2e.process import captions, run

GREEDY = ("--vision-backend", "torch", "--vision-dtype", "auto")
SAMPLED = (*GREEDY, "--temperature", "0.8", "--top-p", "0.9", "--top-k", "50", "--seed", "3")
SAMPLED = (*SAMPLED, "--repetition-penalty", "1.1", "--max-new-tokens", "24")


@dataclass(frozen=True)
class Place:
    """Where and how a job runs."""

    options: tuple[str, ...]
    backwards: bool = False
    rows_only: bool = False
    pieces: int = 1


PLACES = {
    "one slot, one patch budget for each image": Place(
        ("--slots", "1", "--patch-budget", "1", "--vision-threads", "1", "--decoder-threads", "1")
    ),
    "two decoders, odd slots, small queue": Place(
        ("--slots", "3", "--decoders", "2", "--queue-mib", "1", "--decoder-threads", "3")
    ),
    "many slots, more threads, other parts, inputs backwards": Place(
        ("--slots", "19", "--vision-threads", "3", "--decoder-threads", "2", "--rows-per-part", "7"), backwards=True
    ),
    "only the rows of the Parquet file": Place(("--slots", "5", "--patch-budget", "700"), rows_only=True),
    "in three pieces": Place(("--slots", "7"), rows_only=True, pieces=3),
}


def caption_at(job: Job, output: Path, settings: tuple[str, ...], place: Place) -> dict[str, dict[str, object]]:
    """The rows of the job done at a place, by id."""
    inputs = job.inputs[::-1] if place.backwards else job.inputs[1:] if place.rows_only else job.inputs
    there, is_torch = Job(inputs, job.model, job.expected), "torch" in settings
    for piece in range(1, place.pieces):
        # A limit that grows: the job ends in between, and goes on in the middle of a part.
        run(*there.arguments(output, *settings, *place.options, "--limit", str(piece * 11 + 3)), torch=is_torch)
    run(*there.arguments(output, *settings, *place.options), torch=is_torch)
    return by_id(captions(output))


def by_id(table: pa.Table) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in table.to_pylist()}


def assert_same(found: dict[str, dict[str, object]], expected: dict[str, dict[str, object]], place: Place) -> None:
    if place.rows_only:
        expected = {name: row for name, row in expected.items() if name.startswith("rows.parquet")}
        assert len(expected) == SMALL[1]
    assert found.keys() == expected.keys()
    differing = {name: (expected[name], row) for name, row in found.items() if row != expected[name]}
    assert not differing, f"{len(differing)} of {len(expected)} rows differ, one of them: {differing.popitem()}"


@pytest.fixture(scope="module")
def greedy(small_job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The job's captions with PyTorch's vision encoder."""
    return caption_at(small_job, tmp_path_factory.mktemp("greedy") / "out", GREEDY, Place(()))


@pytest.fixture(scope="module")
def sampled(small_job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The job's captions by seeded sampling."""
    rows = caption_at(small_job, tmp_path_factory.mktemp("sampled") / "out", SAMPLED, Place(()))
    # Sampling is at work: the words are others than the likeliest ones.
    greedy = by_id(small_job.expected)
    assert sum(row["caption"] != greedy[name]["caption"] for name, row in rows.items()) > len(rows) / 2
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_greedy_captions_are_the_same_everywhere(
    small_job: Job, greedy: dict[str, dict[str, object]], tmp_path: Path, name: str
) -> None:
    place = PLACES[name]
    assert_same(caption_at(small_job, tmp_path / "out", GREEDY, place), greedy, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PLACES)[1:3])
def test_sampled_captions_are_the_same_everywhere(
    small_job: Job, sampled: dict[str, dict[str, object]], tmp_path: Path, name: str
) -> None:
    place = PLACES[name]
    assert_same(caption_at(small_job, tmp_path / "out", SAMPLED, place), sampled, place)


@pytest.mark.slow
def test_integer_products_give_the_same_captions_everywhere(
    small_job: Job, tiny_bundle_w8a8: Bundle, tmp_path: Path
) -> None:
    """The profile that rounds most, with as few and as many beside each other as the slots and decoders allow."""
    fast = replace(small_job, model=str(tiny_bundle_w8a8.folder))
    settings = ("--profile", "fast", "--vision-backend", "onnx", "--vision-dtype", "int8")
    expected = caption_at(fast, tmp_path / "one", settings, Place(("--slots", "1", "--patch-budget", "1")))
    for number, options in enumerate((("--slots", "32"), ("--slots", "8", "--decoders", "4"))):
        place = Place(options, backwards=bool(number))
        assert_same(caption_at(fast, tmp_path / f"many-{number}", settings, place), expected, place)
