"""The table says what was measured, passes only what is within its tolerance, and is the same in JSON."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from batchcap.core.errors import UsageError
from batchcap.export.quality.metrics import distance, divergence, relative_error
from batchcap.verify.table import Bound, Report, Row
from batchcap.verify.verify import write_json

ROWS = (
    Row("features", 1e-6, 1e-4, unit="of the largest", worst="cat.jpg"),
    Row("same captions", 0.25, 0.5, Bound.AT_LEAST),
    Row("weights", math.nan, 1),
)


def test_a_value_at_its_tolerance_passes() -> None:
    assert Row("a", 1, 1).passed
    assert not Row("a", 1.001, 1).passed
    assert Row("a", 1, 1, Bound.AT_LEAST).passed
    assert not Row("a", 0.999, 1, Bound.AT_LEAST).passed


@pytest.mark.parametrize("bound", Bound)
@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_what_is_no_number_never_passes(bound: Bound, tolerance: float) -> None:
    assert not Row("a", math.nan, tolerance, bound).passed


def test_the_text_is_a_table_with_its_outcome() -> None:
    text = Report({"bundle": "b", "pictures": 3, "names": ["x"]}, ROWS).to_text()
    lines = text.splitlines()
    assert lines[0].split() == ["bundle", "b"]
    assert "names" not in text
    header = next(line for line in lines if line.startswith("check"))
    place = header.index("tolerance")
    rows = [line for line in lines if line.startswith(("features", "same captions  ", "weights  "))]
    assert [line[place:].split()[0] for line in rows] == ["<=", ">=", "<="]
    assert [("FAIL" in line, " ok " in line) for line in rows] == [(False, True), (True, False), (True, False)]
    assert lines[-1] == "2 of 3 checks FAILED: same captions; weights"
    assert Report({}, ROWS[:1]).to_text().endswith("all 1 checks passed")


def test_the_json_is_the_table(tmp_path: Path) -> None:
    report = Report({"bundle_id": "b"}, ROWS)
    write_json(report, tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["passed"] is report.passed is False
    assert content["bundle_id"] == "b"
    assert content["rows"][0] == {
        "check": "features",
        "measured": 1e-6,
        "tolerance": 1e-4,
        "bound": "at_most",
        "unit": "of the largest",
        "passed": True,
        "worst": "cat.jpg",
    }
    assert content["rows"][2]["measured"] is None
    with pytest.raises(UsageError, match="--json"):
        write_json(report, tmp_path / "nothing" / "report.json")


def test_divergence_of_known_distributions() -> None:
    expected, found = (np.log(np.array(values, np.float32)) for values in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    known = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert divergence(expected, found + 7) == pytest.approx(known, rel=1e-6)
    assert divergence(expected, expected) == 0
    told = distance(expected, found)
    assert (told.divergence, told.same_top) == (pytest.approx(known, rel=1e-6), False)
    assert distance(expected, expected + 1).same_top


def test_relative_error() -> None:
    assert relative_error(np.array([2, -4], np.float32), np.array([2, -3], np.float32)) == 0.25
    assert relative_error(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0
    assert math.isnan(relative_error(np.ones(2, np.float32), np.array([1, np.nan], np.float32)))
