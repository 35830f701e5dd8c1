"""The job files in jobs/, as they are: run from another folder, interrupted, resumed, and as cron and systemd do."""

import configparser
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchcap.store.folder import JobFolder
from tests.e2e.shell import PROJECT, Shell, read_captions
from tests.prometheus import parsed
from tests.shared import linked_copy

JOBS = PROJECT / "jobs"
NAMES = ("folder", "monitored", "nightly-parquet", "resume")
INSTALLED = "/srv/captions/"
QUIET_CODES = "0|4|75"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo model is."""
    return linked_copy(demo_cache, tmp_path_factory.mktemp("jobs") / "cache")


@pytest.fixture
def shell(tmp_path: Path, cache: Path) -> Shell:
    """A folder apart from copies of the job files, with the sample data where these expect it."""
    shutil.copytree(JOBS, tmp_path / "project" / "jobs")
    (tmp_path / "project" / "sample_data").symlink_to(PROJECT / "sample_data")
    (tmp_path / "elsewhere").mkdir()
    return Shell(tmp_path / "elsewhere", cache)


def _output(shell: Shell, name: str) -> Path:
    return shell.folder.parent / "project" / "demo-output" / name


def _cron_command(name: str, folder: Path) -> str:
    """The command of the cron line in a job file, for the job files in `folder`."""
    text = (JOBS / f"{name}.toml").read_text(encoding="utf-8")
    (line,) = re.findall(r"^# +(?:[\d*/,-]+ +){5}(.*)$", text, re.MULTILINE)
    assert "%" not in line, "cron would take it for the end of the line"
    assert INSTALLED in line
    return line.replace(INSTALLED, f"{folder}/")


def test_every_job_file_is_tested() -> None:
    assert {path.stem for path in JOBS.glob("*.toml")} == set(NAMES)


def test_folder_job_runs_from_anywhere_and_again(shell: Shell) -> None:
    done = shell.run("batchcap run ../project/jobs/folder.toml")
    assert done.returncode == 0, done.stderr
    table = read_captions(_output(shell, "folder"))
    files = [path for name in ("formats", "orientations") for path in (PROJECT / "sample_data" / name).iterdir()]
    assert sorted(table["id"].to_pylist()) == sorted(path.name for path in files)
    assert set(table["status"].to_pylist()) == {"ok"}
    part = JobFolder(_output(shell, "folder")).part_path(0)
    written_ns = part.stat().st_mtime_ns
    assert shell.run("batchcap run ../project/jobs/folder.toml").returncode == 0
    assert part.stat().st_mtime_ns == written_ns, "what is complete is not written again"
    assert list(shell.folder.iterdir()) == [], "nothing may land where the command was run"


def test_nightly_job_stops_in_time_and_goes_on(shell: Shell) -> None:
    job = shell.folder.parent / "project" / "jobs" / "nightly-parquet.toml"
    whole = job.read_text(encoding="utf-8")
    short = whole.replace("max_runtime = 28800", "max_runtime = 0.01")
    assert short != whole
    job.write_text(short, encoding="utf-8")
    first = shell.run(f"batchcap --quiet run {job}")
    assert first.returncode == 75, first.stderr
    # So short a time may be up before the rows are counted.
    assert json.loads(JobFolder(_output(shell, "nightly-parquet")).summary_path.read_text())["remaining"] in (16, None)
    job.write_text(whole, encoding="utf-8")
    second = shell.run(f"batchcap --quiet run {job}")
    assert second.returncode == 0, second.stderr
    table = read_captions(_output(shell, "nightly-parquet"))
    given = pq.read_table(PROJECT / "sample_data" / "manifest.parquet").drop_columns(["image"])
    assert len(table) == len(given) == 16
    for name in given.column_names:
        assert table[name].to_pylist() == given[name].to_pylist()


def _rows_done(output: Path) -> int:
    """Rows that are durable; 0 while there is no job yet."""
    parts = sum(pq.read_metadata(path).num_rows for path in JobFolder(output).part_paths())
    journal = JobFolder(output).journal_path
    try:
        with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    except sqlite3.Error:
        return parts
    return parts + int(rows)


def _add_images(project: Path, copies: int) -> None:
    """More sample images, none of them another's twin: bytes behind a JPEG's end are not part of the image."""
    samples = project / "sample_data"
    samples.unlink()
    shutil.copytree(PROJECT / "sample_data", samples)
    (samples / "more").mkdir()
    for path in (PROJECT / "sample_data").rglob("*.jpg"):
        for number in range(copies):
            (samples / "more" / f"{path.parent.name}-{number}-{path.name}").write_bytes(
                path.read_bytes() + bytes([number])
            )


def _kill_once_begun(process: "subprocess.Popen[bytes]", output: Path) -> None:
    """SIGKILL the process group as soon as some rows are durable."""
    while process.poll() is None and not _rows_done(output):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL, "the job ended before it could be killed"


def test_resume_job_is_killed_and_equals_an_uninterrupted_run(shell: Shell) -> None:
    job = shell.folder.parent / "project" / "jobs" / "resume.toml"
    output = _output(shell, "resume")
    _add_images(shell.folder.parent / "project", copies=2)  # so that it is not over before it can be killed
    _kill_once_begun(shell.start(f"batchcap run {job}"), output)
    done = _rows_done(output)
    status = json.loads(shell.run(f"batchcap status {output} --json").stdout)
    assert (status["done"], status["holder"]) == (done, None)
    assert 0 < done < status["rows"]
    resumed = shell.run(f"batchcap run {job}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{done} done before" in resumed.stderr

    whole = shell.folder.parent / "project" / "jobs" / "whole.toml"
    whole.write_text(job.read_text(encoding="utf-8").replace("demo-output/resume", "demo-output/whole"))
    assert shell.run(f"batchcap run {whole}").returncode == 0
    interrupted, uninterrupted = read_captions(output), read_captions(_output(shell, "whole"))
    assert interrupted.select(["id", "caption"]).equals(uninterrupted.select(["id", "caption"]))
    assert len(interrupted) == len(set(interrupted["id"].to_pylist())) == status["rows"]


@pytest.mark.parametrize("name", NAMES)
def test_cron_line_is_silent_unless_something_is_wrong(name: str, shell: Shell) -> None:
    jobs = shell.folder.parent / "project" / "jobs"
    command = _cron_command(name, jobs)
    good = shell.run(command)
    assert (good.stdout, good.stderr) == ("", "")
    assert json.loads(JobFolder(_output(shell, name)).summary_path.read_text())["state"] == "complete"
    job = jobs / f"{name}.toml"
    job.write_text(job.read_text(encoding="utf-8").replace("../sample_data", "../no-such-data"), encoding="utf-8")
    bad = shell.run(command)
    assert re.search(r"no-such-data\S* does not exist", bad.stdout)
    assert bad.stderr == ""


def test_monitored_job_is_told_of(shell: Shell) -> None:
    output = _output(shell, "monitored")
    mailed = shell.folder.parent / "mailed"
    (shell.folder / "mail").write_text(f"#!/bin/sh\ncat >{mailed}\n", encoding="utf-8")
    (shell.folder / "mail").chmod(0o755)
    watched = Shell(shell.folder, shell.cache, {"PATH": f"{shell.folder}:{shell.environment['PATH']}"})
    assert watched.run("batchcap --quiet run ../project/jobs/monitored.toml").returncode == 0
    assert not mailed.exists()
    success = parsed(output.with_suffix(".prom").read_text())["batchcap_last_success_timestamp_seconds"].only
    assert success > 0
    (shell.folder.parent / "project" / "jobs" / "monitored.toml").open("a").write("[generation]\ntop_k = 3\n")
    refused = watched.run("batchcap --quiet run ../project/jobs/monitored.toml")
    assert refused.returncode == 5, refused.stderr
    found = parsed(output.with_suffix(".prom").read_text())
    assert found["batchcap_last_success_timestamp_seconds"].only == success
    assert found["batchcap_last_exit_code"].only == 5
    assert "belongs to another job" in mailed.read_text()
    events = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert [one["exit_code"] for one in events if one["event"] == "run_ended"] == [0, 5]


@pytest.mark.parametrize("code", [*range(6), 75, 130])
def test_cron_line_mails_the_right_exit_codes(code: int, tmp_path: Path) -> None:
    stand_in = tmp_path / "batchcap"
    stand_in.write_text(f"#!/bin/sh\necho message of exit code {code} >&2\nexit {code}\n", encoding="utf-8")
    stand_in.chmod(0o755)
    shell = Shell(tmp_path, tmp_path, {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    mailed = shell.run(_cron_command("folder", tmp_path)).stdout
    assert mailed == ("" if str(code) in QUIET_CODES.split("|") else f"message of exit code {code}\n")


def _units(kind: str) -> Iterator[tuple[str, configparser.ConfigParser]]:
    for name in NAMES:
        path = JOBS / "systemd" / f"batchcap-{name}.{kind}"
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(path.read_text(encoding="utf-8"))
        yield name, parser


def test_services_run_their_job_and_know_the_exit_codes() -> None:
    for name, unit in _units("service"):
        service = unit["Service"]
        assert service["ExecStart"] == f"/usr/local/bin/batchcap --quiet run {INSTALLED}{name}.toml"
        assert service["Type"] == "oneshot"
        assert service["SuccessExitStatus"].split() == ["4", "75"]
        assert unit["Unit"]["Description"]
    assert dict(_units("service"))["resume"]["Service"]["RestartPreventExitStatus"].split() == ["2", "3", "5"]


def test_timers_start_something() -> None:
    for _name, unit in _units("timer"):
        assert {"OnCalendar", "OnBootSec"} & set(unit["Timer"])
        assert unit["Install"]["WantedBy"] == "timers.target"
        assert unit["Unit"]["Description"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in (JOBS / "systemd").iterdir():
        # The one thing that can't be checked here is that batchcap is installed there.
        text = path.read_text(encoding="utf-8").replace("/usr/local/bin/batchcap", "/bin/true")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 2 * len(NAMES)
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
