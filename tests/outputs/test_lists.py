"""Forms that are one file: whole, of finished rows with wanted captions, and never in the place of somebody's file."""

import csv
import datetime as dt
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from batchcap.config import Existing, InputConfig, JobConfig, OutputsConfig
from batchcap.core.errors import UsageError, WorkerError
from batchcap.outputs import lists
from batchcap.outputs.convert import convert
from batchcap.outputs.lists import plain, plain_rows
from tests.images.samples import encode, noise
from tests.inputs.parquets import write_table
from tests.outputs.conftest import Run, parquet_job

CAPTIONS = ["Caption of a.png.", "Caption of sub/b.jpg.", "Caption of sub/c d.webp."]


def test_json_lines(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(config)
    (written,) = convert(Path(config.output), ["jsonl"], OutputsConfig())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == CAPTIONS
    assert rows[0]["source"] == str(tmp_path / "in/a.png")
    assert written.to_text() == (
        f"jsonl: 3 captions in 1 file in {tmp_path / 'out.jsonl'}; left out: 1 failed, 1 truncated"
    )


def test_arrow(two_prompts: JobConfig, run: Run, tmp_path: Path) -> None:
    run(two_prompts)
    (written,) = convert(Path(two_prompts.output), [f"arrow:{tmp_path / 'x.feather'}"], OutputsConfig())
    table = pa.ipc.open_file(tmp_path / "x.feather").read_all()
    assert table["caption_long"].to_pylist() == [text.replace("Caption", "long") for text in CAPTIONS]
    assert written.captions == 6


def test_other_captions_of_a_row_are_null(two_prompts: JobConfig, run: Run, tmp_path: Path) -> None:
    """One of two prompts has a bad verdict: the row is there with the other's caption."""
    run(two_prompts)
    table = pa.table(
        {
            "caption_short": ["a", "b", "c"],
            "verdict_short": ["ok", "empty", None],
            "caption_long": ["d", "e", "f"],
            "verdict_long": ["truncated", "truncated", "ok"],
            "thinking_long": ["x", "y", "z"],
        }
    )
    found, captions = lists.wanted_rows(table, ("short", "long"), ("ok",))
    assert found.to_pydict() == {
        "caption_short": ["a", None],
        "verdict_short": ["ok", None],
        "caption_long": [None, "f"],
        "verdict_long": ["truncated", "ok"],
        "thinking_long": [None, "z"],
    }
    assert captions == 2


@pytest.mark.parametrize("is_safe", [False, True])
def test_csv_and_formulas(config: JobConfig, run: Run, tmp_path: Path, is_safe: bool) -> None:
    config = parquet_job(config, tmp_path)
    run(config)
    convert(Path(config.output), ["csv"], OutputsConfig(csv_safe=is_safe))
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["title"] for row in rows] == ["'=1+1" if is_safe else "=1+1", ""]
    assert rows[0]["caption"] == "Caption of x.parquet:0."


def test_csv_of_columns_it_has_no_way_for(config: JobConfig, run: Run, tmp_path: Path) -> None:
    columns = {
        "image": [encode(noise(20, 10))],
        "tags": [["a", "b"]],
        "raw": [b"\xff"],
        "more": [{"x": 1.5}],
        "kind": pa.array(["k"]).dictionary_encode(),
    }
    write_table(tmp_path / "x.parquet", columns)
    given = InputConfig((str(tmp_path / "x.parquet"),), image_column="image", keep_columns=("*",))
    config = replace(config, input=given)
    run(config)
    convert(Path(config.output), ["csv"], OutputsConfig())
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {name: row[name] for name in ("tags", "raw", "more", "kind")} == {
        "tags": '["a", "b"]',
        "raw": '"/w=="',
        "more": '{"x": 1.5}',
        "kind": '"k"',
    }


def test_a_file_of_somebody_else_is_refused(config: JobConfig, run: Run, tmp_path: Path) -> None:
    run(config)
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(UsageError, match="is there already, and batchcap did not write it"):
        convert(Path(config.output), ["csv"], OutputsConfig())
    assert (tmp_path / "out.csv").read_text() == "mine"
    convert(Path(config.output), ["csv"], OutputsConfig(existing=Existing.REPLACE))
    convert(Path(config.output), ["csv"], OutputsConfig())
    (tmp_path / "out.csv").write_text("mine again, of another size")
    with pytest.raises(UsageError, match="is there already"):
        convert(Path(config.output), ["csv"], OutputsConfig())


@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_kill_around_the_rename(
    config: JobConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_renamed: bool
) -> None:
    """Whichever file is there afterwards is known as batchcap's."""
    run(config)
    convert(Path(config.output), ["jsonl"], OutputsConfig())
    with monkeypatch.context() as patch:
        real = Path.replace

        def killed(self: Path, target: Path) -> None:
            if is_renamed:
                real(self, target)
            raise KeyboardInterrupt

        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(Path(config.output), ["jsonl"], OutputsConfig(verdicts=("ok", "truncated")))
    convert(Path(config.output), ["jsonl"], OutputsConfig())
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_of_a_job_that_is_not_complete(config: JobConfig, run: Run, tmp_path: Path) -> None:
    with pytest.raises(WorkerError):
        run(config, dies_after=1)
    with pytest.raises(UsageError, match=r"no part of .* is finished yet"):
        convert(Path(config.output), ["jsonl"], OutputsConfig())
    with pytest.raises(WorkerError):
        run(config, dies_after=3)
    (written,) = convert(Path(config.output), ["jsonl"], OutputsConfig())
    assert (written.captions, written.left_out) == (2, {"truncated": 1, "failed": 1})


@pytest.mark.parametrize("place", ["none/x.jsonl", "in"])
def test_a_place_that_is_none(config: JobConfig, run: Run, tmp_path: Path, place: str) -> None:
    run(config)
    with pytest.raises(UsageError, match="name a file in an existing folder"):
        convert(Path(config.output), ["txt", f"jsonl:{tmp_path / place}"], OutputsConfig())
    assert not list((tmp_path / "in").rglob("*.txt")), "all forms are looked at before the first is written"


def test_values_that_json_does_not_have() -> None:

    value = {"a": [b"\xff", float("nan"), 1], "b": dt.datetime(2026, 1, 2, 3), "c": Decimal("1.50"), "d": None}  # noqa: DTZ001
    assert plain(value) == {"a": ["/w==", None, 1], "b": "2026-01-02T03:00:00", "c": "1.50", "d": None}


def test_values_that_python_does_not_have() -> None:
    """One of them must not take the others with it."""
    late = pa.array([6 * 10**11, 0, None], pa.int64()).cast(pa.timestamp("s"))
    nano = pa.array([1, 2000, None], pa.int64()).cast(pa.timestamp("ns"))
    inside = pa.StructArray.from_arrays([late], ["x"])
    rows = list(plain_rows(pa.table({"late": late, "nano": nano, "inside": inside, "number": [1, 2, 3]})))
    assert rows[0]["late"] == "20983-03-30 10:40:00"
    assert rows[1]["late"] == "1970-01-01T00:00:00"
    assert [row["inside"] for row in rows] == [None, {"x": "1970-01-01T00:00:00"}, {"x": None}]
    assert [row["number"] for row in rows] == [1, 2, 3]
    assert rows[2] == {"late": None, "nano": None, "inside": {"x": None}, "number": 3}
