"""Tallies add up, and the summary says what a script needs."""

import json
from dataclasses import replace

import pytest

from batchcap.core.errors import ErrorKind, ExitCode
from batchcap.core.records import CaptionRow, Status, Verdict
from batchcap.core.row_counts import RowCounts
from batchcap.job.summary import JobState, RunMetrics, Summary

OK = CaptionRow(id="a", source="a", row=0, caption="x", verdict=Verdict.OK, new_tokens=7)
CUT = replace(OK, verdict=Verdict.TRUNCATED)
FAILED = CaptionRow(id="b", source="b", row=0, status=Status.FAILED, error_kind=ErrorKind.CORRUPT)


def tally_of(*rows: CaptionRow) -> RowCounts:
    counts = RowCounts()
    for row in rows:
        counts.add_row(row)
    return counts


def test_tallies_of_parts_add_up_to_that_of_the_job() -> None:
    total = tally_of(OK, FAILED)
    total.add(RowCounts.from_dict(json.loads(json.dumps(tally_of(CUT, OK, FAILED).to_dict()))))
    assert total == tally_of(OK, FAILED, CUT, OK, FAILED)
    assert (total.rows, total.ok, total.failed, total.new_tokens) == (5, 3, 2, 21)
    assert total.verdicts == {"ok": 2, "truncated": 1}
    assert total.error_kinds == {"corrupt": 2}


def test_the_share_of_failures() -> None:
    assert tally_of().error_rate == 0
    assert tally_of(OK, FAILED, FAILED, OK).error_rate == 0.5


def test_rates_are_of_the_time_at_work() -> None:
    """Copies and failures are no images captioned."""
    figures = RunMetrics(
        40,
        600,
        elapsed_s=100,
        working_s=60,
        stage_busy_s={"vision": 1.234},
        peak_memory_mib=99.96,
        duplicates=8,
        images=30,
    )
    assert (figures.images_per_min, figures.tokens_per_s) == (30, 10)
    assert (figures.to_dict()["rows"], figures.to_dict()["images"], figures.to_dict()["twins"]) == (40, 30, 8)
    assert figures.to_dict()["stage_busy_s"] == {"vision": 1.23}
    assert figures.to_dict()["peak_memory_mib"] == 100.0
    assert replace(figures, working_s=0).images_per_min == 0


@pytest.mark.parametrize(("total", "remaining"), [(5, 3), (None, None)])
def test_a_summary_is_plain_json(total: int | None, remaining: int | None) -> None:
    summary = Summary(JobState.STOPPED, ExitCode.STOPPED_EARLY, "später", total, tally_of(OK, FAILED), None, None)
    text = summary.to_json()
    assert "später" in text
    content = json.loads(text)
    assert (content["state"], content["exit_code"], content["run"]) == ("stopped", 75, None)
    assert (content["rows"], content["done"], content["remaining"]) == (total, total and 2, remaining)
