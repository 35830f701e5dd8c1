"""`tune` measures with the real engine, what it found is used and told, and a resume keeps the encoder of its start."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchcap.core.errors import ExitCode
from batchcap.engines.profiles import NAMES
from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from tests.e2e.command import assert_refused, batchcap, read_rows
from tests.e2e.inputs import write_images

pytestmark = pytest.mark.slow

MINUTES = 0.25  # a measurement takes about a second, and two must fit in, on a busy machine, too
UNROUNDED = {"torch fp32", "onnx fp32", "torch bf16"}


def _files(cache: Path) -> list[Path]:
    """What tune keeps, temporary files included; models are kept in the cache folder, too."""
    return [path for path in cache.rglob("tuning/*") if path.is_file()]


@pytest.fixture(scope="module")
def tuned(tiny_bundle_int4: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cache folder with the result for the tiny bundle, and what the command printed."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {"BATCHCAP_CACHE": str(cache)}
    done = batchcap("tune", "--model", tiny_bundle_int4.folder, "--minutes", MINUTES, torch=True, **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "measuring 2:" in done.stderr
    assert " s left" in done.stderr
    return cache, done.stdout


def test_tune_prints_a_table_and_keeps_the_best(tuned: tuple[Path, str], tiny_bundle_int4: Bundle) -> None:
    cache, printed = tuned
    (path,) = _files(cache)
    content = json.loads(path.read_text())
    assert content["made_for"]["bundle"] == tiny_bundle_int4.id
    assert set(content["settings"]) == set(NAMES)
    lines = printed.splitlines()
    rows = lines[1 : lines.index("")]
    assert lines[0].split()[0] == "images/min"
    assert len(rows) == len(content["measured"]) >= 2
    assert "default" in rows[0]
    assert sum("best" in row for row in rows) == 1
    assert str(path) in printed
    # Without being asked for, no encoder that rounds more.
    tried = {f"{one['settings']['vision_backend']} {one['settings']['vision_dtype']}" for one in content["measured"]}
    assert tried <= UNROUNDED
    # The rate of the default and of the best, as they are in the file, make the speedup.
    times = {json.dumps(one["settings"]): one["row_s"] for one in content["measured"]}
    assert all(row_s > 0 for measured in times.values() for row_s in measured)
    assert content["speedup"] >= 1


def test_doctor_and_jobs_use_what_was_tuned(tuned: tuple[Path, str], tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tuned[0], tmp_path / "cache"))
    (path,) = _files(cache)
    content = json.loads(path.read_text())
    content["settings"] |= {"slots": 7, "decoders": 2, "decoder_threads": 1}
    content["settings"] |= {"vision_backend": "auto", "vision_dtype": "auto"}
    path.write_text(json.dumps(content))
    model = ("--model", tiny_bundle_int4.folder)
    environment = {"BATCHCAP_CACHE": str(cache)}
    shown = batchcap("doctor", *model, "--json", torch=True, **environment)
    plan = json.loads(shown.stdout)["a job with default options"]
    assert plan["profile"].startswith("profile auto, tuned on 20")
    assert plan["decoders"] == "2 with 7 slots and 1 threads"
    assert "MiB" in plan["memory"]
    small = json.loads(batchcap("doctor", *model, "--json", "--profile", "small", torch=True, **environment).stdout)
    assert small["a job with these options"]["decoders"].startswith("1 with 4 slots")
    given = json.loads(batchcap("doctor", *model, "--json", "--decoders", "1", torch=True, **environment).stdout)
    assert given["a job with these options"]["decoders"].startswith("1 with 7 slots")
    images = write_images(tmp_path / "pictures", 4)
    done = batchcap("caption", images, "-o", tmp_path / "out", *model, "--slots", 3, torch=True, **environment)
    assert done.returncode == 0, done.stderr
    assert "settings: profile auto, tuned on 20" in done.stderr
    used = json.loads(JobFolder(tmp_path / "out").job_path.read_text())["configuration"]
    assert (used["placement"]["decoders"], used["placement"]["slots"], used["profile"]) == (2, 3, "auto")
    job = tmp_path / "job.toml"
    job.write_text(f'output = "again"\nmodel = "{model[1]}"\nprofile = "small"\n[input]\ninputs = ["pictures"]\n')
    done = batchcap("run", job, torch=True, **environment)
    assert done.returncode == 0, done.stderr
    used = json.loads(JobFolder(tmp_path / "again").job_path.read_text())["configuration"]
    assert (used["placement"]["slots"], used["placement"]["queue_mib"]) == (4, 32)
    first, again = ([row["caption"] for row in read_rows(tmp_path / name)] for name in ("out", "again"))
    assert first == again, "a profile that takes the same encoder changes no caption"


def test_a_broken_result_is_passed_over(tuned: tuple[Path, str], tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tuned[0], tmp_path / "cache"))
    (path,) = _files(cache)
    path.write_text(path.read_text()[:-20])
    done = batchcap("doctor", "--model", tiny_bundle_int4.folder, torch=True, BATCHCAP_CACHE=str(cache))
    assert done.returncode == 0
    assert "not tuned for this machine: run `batchcap tune`" in done.stdout
    assert f"{path} can't be read" in done.stderr


def test_a_resume_keeps_the_encoder_whatever_the_profile_says(tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    images = write_images(tmp_path / "pictures", 6)
    output = tmp_path / "out"
    command = ("caption", images, "-o", output, "--model", tiny_bundle_int4.folder, "--max-new-tokens", 8)
    environment = {"BATCHCAP_CACHE": str(tmp_path / "cache")}
    # Given, since `fast` would take another one on a CPU with tiles for bf16.
    begun = batchcap(*command, "--profile", "fast", "--vision-dtype", "int8", "--limit", 2, **environment)
    assert begun.returncode == 0, begun.stderr
    assert "export --precision w8a8" in begun.stderr
    fingerprint = json.loads(JobFolder(output).job_path.read_text())["fingerprint"]
    assert (fingerprint["vision-backend"], fingerprint["vision-dtype"]) == ("onnx", "int8")
    resumed = batchcap(*command, "--limit", 4, **environment)
    assert resumed.returncode == 0, resumed.stderr
    assert "this job keeps the vision encoder it was begun with, onnx int8" in resumed.stderr
    small = batchcap(*command, "--profile", "small", **environment)
    assert small.returncode == 0, small.stderr
    assert len(read_rows(output)) >= 6
    # All of it is what the first settings would have given in one go.
    whole = tmp_path / "whole"
    batchcap(*command[:3], whole, *command[4:], "--vision-backend", "onnx", "--vision-dtype", "int8", **environment)
    assert [row["caption"] for row in read_rows(whole)] == [row["caption"] for row in read_rows(output)]
    # Somebody's own word is not bent: that is another job.
    other = batchcap(*command, "--vision-dtype", "fp32", **environment)
    assert_refused(other, "--vision-dtype", "int8", code=ExitCode.NOT_SAME_JOB)


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        ("0", ("--minutes must be above 0",)),
        ("-1", ("--minutes must be above 0",)),
        ("nan", ("--minutes must be above 0",)),
        ("0.01", ("--minutes 0.01 is too short", "would leave time")),
    ],
)
def test_minutes_that_are_none(minutes: str, words: tuple[str, ...], tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    environment = {"BATCHCAP_CACHE": str(tmp_path / "cache")}
    done = batchcap("tune", "--model", tiny_bundle_int4.folder, "--minutes", minutes, torch=True, **environment)
    assert_refused(done, *words)
    assert not _files(tmp_path)


def test_no_bundle(tmp_path: Path) -> None:
    assert_refused(batchcap("tune", "--model", tmp_path), "is not a bundle")
    assert_refused(batchcap("tune"), "no model is named", "batchcap export", "--model demo")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.STOPPED_EARLY)]
)
def test_stopped_in_the_middle_it_leaves_nothing(
    number: int, code: ExitCode, tiny_bundle_int4: Bundle, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "batchcap.cli", "tune", "--model", str(tiny_bundle_int4.folder), "--minutes", "2"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "BATCHCAP_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "measuring 2:" in line:
            os.killpg(process.pid, number)
    out, _rest = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert out == ""
    assert "Traceback" not in "".join(said)
    assert not _files(tmp_path)
