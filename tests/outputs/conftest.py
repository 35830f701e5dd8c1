"""A job of small images that a fake engine captions, for forms to be made of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import GenerationConfig, InputConfig, JobConfig, OutputsConfig, PlacementConfig
from batchcap.core.errors import ErrorKind
from batchcap.core.records import Caption, Failure, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.inputs.encoded import digest, read_encoded
from batchcap.job import run as job
from batchcap.job.run import run_job
from batchcap.job.summary import Summary
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.images.samples import encode, noise
from tests.inputs.parquets import write_table

NAMES = ("a.png", "sub/b.jpg", "sub/c d.webp", "cut.png", "bad.png")
Run = Callable[..., Summary]


def captioned(request: Request) -> Outcome:
    """`Caption of ID.` for each prompt; of `cut` one that is truncated, of `bad` none."""
    row = request.row
    if "bad" in row.id:
        return Outcome(request, Failure(row.index, ErrorKind.CORRUPT, "it is cut off"))
    verdict = Verdict.TRUNCATED if "cut" in row.id else Verdict.OK
    captions = tuple(
        Caption(
            row.index,
            (1,),
            f"{prompt.name or 'Caption'} of {row.id}.",
            FinishReason.STOP,
            verdict,
            9,
            4,
            3.0,
            5.0,
            prompt=number,
        )
        for number, prompt in enumerate(request.prompts)
    )
    return Outcome(request, captions, ImageFacts(20, 10, digest(read_encoded(row)), 1.0, 2.0))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    """Five image files, one of them with a truncated caption and one that fails, two rows to a part."""
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "cache"))
    for name in NAMES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(20, 10)))
    return JobConfig(
        InputConfig((str(tmp_path / "in"),)), str(tmp_path / "out"), placement=PlacementConfig(rows_per_part=2)
    )


@pytest.fixture
def two_prompts(config: JobConfig) -> JobConfig:
    """The job with two prompts."""
    return replace(config, generation=GenerationConfig(prompt={"short": "Short?", "long": "Long?"}))


@pytest.fixture
def run() -> Run:
    """Runs a job; `dies_after` so many rows."""

    def run_it(config: JobConfig, dies_after: int | None = None) -> Summary:
        engine = FakeEngine(room=1, end=captioned, dies_after=dies_after)  # rows end in order
        return run_job(config, SilentProgress(), lambda _config: engine)

    return run_it


def with_outputs(config: JobConfig, **settings: object) -> JobConfig:
    """The job with other settings of its forms."""
    return replace(config, outputs=OutputsConfig(**settings))  # type: ignore[arg-type]


def parquet_job(config: JobConfig, tmp_path: Path) -> JobConfig:
    """A job of two rows with images in a Parquet file."""
    write_table(tmp_path / "x.parquet", {"image": [encode(noise(20, 10))] * 2, "title": ["=1+1", None]})
    return replace(config, input=InputConfig((str(tmp_path / "x.parquet"),), keep_columns=("title",)))
