"""The short form of `make chaos`: on a small job, those faults that no other test has."""

from pathlib import Path

import pytest

from batchcap.model.bundle import Bundle
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.harness import run_with
from tests.chaos.kinds import KINDS, job_of
from tests.e2e.conftest import Job, uninterrupted_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_job(tiny_bundle_int4: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return uninterrupted_job(tmp_path_factory.mktemp("chaos"), tiny_bundle_int4, images=50, parquet_rows=30)


SHORT = (
    "EIO at the journal",
    "KILL at the journal",
    "EIO at a part",
    "KILL at a part",
    "ENOSPC at the statistics",
    "EIO at the summary",
    "a read-only folder",
    "SIGSTOP of a decoder",
    "a torn journal",
    "a part cut short",
    "a clock that jumps",
)


# The kinds of input take turns.
IN_FORMS = ("SIGKILL of all", "KILL at a part", "KILL at another form", "ENOSPC at another form", "a torn journal")


@pytest.mark.parametrize("fault", [one for one in FAULTS if one.name in SHORT], ids=lambda fault: fault.name)
def test_nothing_is_lost(fault: Fault, small_job: Job, tmp_path: Path) -> None:
    run_with(fault, small_job, tmp_path / "out", seed=1)


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[kind.name for kind in KINDS])
def test_nothing_is_lost_of_other_inputs_and_forms(number: int, tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    job = job_of(KINDS[number], tmp_path, str(tiny_bundle_int4.folder))
    (fault,) = (one for one in FAULTS if one.name == IN_FORMS[number % len(IN_FORMS)])
    run_with(fault, job, tmp_path / "out", seed=number)
