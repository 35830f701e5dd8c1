"""What the pages and examples say of metrics, events and the program at the end is what there is."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from batchcap.core.row_counts import RowCounts
from batchcap.engines.base import EngineLoad
from batchcap.job import on_end
from batchcap.job.metrics import Figures, RunState, exposition_of
from tests.docs.markdown import PROJECT, blocks, section, table, text_of
from tests.job.small import run_small, small_job
from tests.prometheus import Family, parsed

PAGE = "docs/operations.md"


@pytest.fixture(scope="module")
def metrics() -> dict[str, Family]:
    """All metrics of a run of which all is known."""
    figures = Figures(EngineLoad(), 1.0, 1.0, 1.0)
    state = RunState(1.0, 2.0, True, 1.5, 0, 1.5, 3, RowCounts(), 1, figures)
    return parsed(exposition_of(state, "out", "m"))


def labels_of(family: Family) -> set[str]:
    return {name for labels in family.samples for name, _value in labels} - {"job"}


def test_every_metric_is_described(metrics: dict[str, Family]) -> None:
    rows = table(section(text_of(PAGE), "### Metrics for Prometheus"))
    said = {name.strip("`"): (kind, {*re.findall(r"`(\w+)`", labels)}) for name, kind, labels, _meaning in rows}
    assert said == {name: (family.kind, labels_of(family)) for name, family in metrics.items()}


def test_alert_rules_ask_for_what_there_is(metrics: dict[str, Family]) -> None:
    rules = yaml.safe_load(text_of("jobs/alerts.yml"))["groups"][0]["rules"]
    named = set()
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "annotations"}
        found = re.findall(r"\bbatchcap_\w+", rule["expr"])
        assert found
        assert set(found) <= metrics.keys(), rule["alert"]
        labels = re.findall(r"(?:by|on) \((\w+)\)|\$labels\.(\w+)", f"{rule['expr']} {rule['annotations']['summary']}")
        assert {name for pair in labels for name in pair if name} == {"exported_job"}
        named |= set(found)
    assert {"batchcap_last_success_timestamp_seconds", "batchcap_last_exit_code"} <= named
    (example,) = blocks(section(text_of(PAGE), "### Metrics for Prometheus"), "yaml")
    (shown,) = yaml.safe_load(example)
    assert shown.items() <= rules[0].items(), "the page shows the first rule"


def test_every_event_is_described(tmp_path: Path) -> None:
    rows = {row[0].strip("`"): row[2] for row in table(section(text_of(PAGE), "### Events"))}
    source = (PROJECT / "batchcap/job/operations.py").read_text(encoding="utf-8")
    assert set(rows) == set(re.findall(r'_add\(\s*"(\w+)"', source))
    path = tmp_path / "events.jsonl"
    run_small(small_job(tmp_path, events=str(path)))
    seen = [json.loads(line) for line in path.read_text().splitlines()]
    assert {one["event"] for one in seen} == {"run_started", "rows_planned", "part_written", "run_ended"}
    for one in seen:
        own = list(one)[4:]
        assert re.findall(r"(?<!\()`(\w+)`", rows[one["event"]]) == own, one["event"]


def test_the_variables_of_the_program_at_the_end_are_described(tmp_path: Path) -> None:
    rows = table(section(text_of(PAGE), "### A program at the end"))
    out = tmp_path / "environment"
    run_small(small_job(tmp_path, on_end=f"sh -c 'env >{out}'"))
    told = re.findall(r"^(BATCHCAP_[A-Z_]+)=", out.read_text(), re.MULTILINE)
    assert sorted(row[0].strip("`") for row in rows) == sorted(set(told) - os.environ.keys())
    assert on_end.LIMIT_S == 300, "the page says five minutes"


@pytest.mark.parametrize("code", [0, 2, 3, 4, 75])
def test_the_example_mails_what_a_person_must_look_at(code: int, tmp_path: Path) -> None:
    (tmp_path / "mail").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/mailed\ncat >>{tmp_path}/mailed\n')
    (tmp_path / "mail").chmod(0o755)
    run_small(small_job(tmp_path))
    told = {
        "BATCHCAP_EXIT_CODE": str(code),
        "BATCHCAP_JOB": "out",
        "BATCHCAP_OUTPUT": str(tmp_path / "out"),
        "BATCHCAP_SUMMARY": "" if code == 2 else "x",
        "BATCHCAP_MESSAGE": "what happened",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run([str(PROJECT / "jobs/on-end.sh")], env=told, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    mailed = tmp_path / "mailed"
    assert mailed.exists() == (code in (2, 3))
    if code in (2, 3):
        text = mailed.read_text()
        assert f"batchcap out: exit code {code}\n" in text
        assert "\nwhat happened\n" in text
        assert ("# Captions in `out`" in text) == (code == 3)
