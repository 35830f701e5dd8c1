"""How the command behaves: instant help, results on stdout alone, progress for terminals and for logs."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from PIL import Image

from batchcap import __version__
from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from tests.e2e.command import ONNX, TIMEOUT_S, assert_refused, batchcap, read_rows

HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "numpy", "pyarrow", "PIL", "tokenizers", "huggingface_hub")
IMPORTS = f"""
import sys
from batchcap import cli
try:
    sys.argv = ["batchcap", *sys.argv[1:]]
    cli.main()
finally:
    sys.stderr.write("loaded:" + ",".join(name for name in {HEAVY!r} if name in sys.modules))
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (64 + number, 48), (200, 30 * number, 40)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "arguments", [("--help",), ("caption", "--help"), ("export", "-h"), ("--version",), ("caption", "x", "--bogus")]
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", IMPORTS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.rpartition("loaded:")[2] == ""


def test_a_mistaken_path_does_not_wait_for_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTS, "caption", str(tmp_path / "nothing"), "-o", str(tmp_path / "out")]
    command += ["--model", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    loaded = done.stderr.rpartition("loaded:")[2].split(",")
    assert not {"torch", "transformers", "onnxruntime"} & set(loaded)


def test_help_names_every_command() -> None:
    done = batchcap("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ("caption", "run", "export", "verify", "status", "report", "doctor", "tune"):
        assert re.search(rf"\b{name}\b", done.stdout)


def test_version() -> None:
    done = batchcap("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"batchcap {__version__}\n", "")


def test_results_on_stdout_progress_on_stderr(tmp_path: Path, images: Path, tiny_bundle_int4: Bundle) -> None:
    command = ("caption", images, "-o", tmp_path / "out", "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 4)
    done = batchcap(*command, "--show", 2)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert [line.split()[0] for line in table] == ["0.png", "1.png"]
    where = tmp_path / "out" / "part-00000.parquet"
    took = r"6 images in [^,]+, [\d.]+ images/min after loading"
    assert re.fullmatch(rf"6 captions, 0 failed \(this run: {took}\): {re.escape(str(where))}", last)
    lines = done.stderr.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines), done.stderr
    assert any("6 rows, 0 done before, 6 to do" in line for line in lines)

    quiet = batchcap("--quiet", *command)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == f"6 captions, 0 failed: {where}\n", "nothing was left to do"


def test_no_error_stream_an_old_encoding_and_a_reader_that_leaves(
    tmp_path: Path, images: Path, tiny_bundle_int4: Bundle
) -> None:
    """What cron lines and pipes do to a command changes neither its work nor its exit code."""
    options = f"-o {tmp_path / 'out'} -m {tiny_bundle_int4.folder} --max-new-tokens 4 --max-error-rate 0 --show 9"
    options += " --vision-backend onnx"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.png").touch()
    line = f"{sys.executable} -m batchcap.cli caption {images} {tmp_path / 'more'} {options}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    left = subprocess.run(["bash", "-c", f"set -o pipefail; {line} 2>&- <&- | true"], env=environment, check=False)
    assert left.returncode == 3, "one of the rows has failed"
    assert [row["status"] for row in read_rows(tmp_path / "out")] == ["ok"] * 6 + ["failed"]
    again = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, check=False)
    assert again.returncode == 3, again.stderr
    assert len(again.stdout.splitlines()) == 8


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_lead_nowhere(
    tmp_path: Path, images: Path, tiny_bundle_int4: Bundle, closed: str
) -> None:
    options = f"-o {tmp_path / 'out'} -m {tiny_bundle_int4.folder} --max-new-tokens 4 --vision-backend onnx"
    for command in (f"caption {images} {options} --show 9", f"status {tmp_path / 'out'}", "--version"):
        line = f"{sys.executable} -m batchcap.cli {command} {closed}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr
    assert len(read_rows(tmp_path / "out")) == 6


def test_more_captions_than_anybody_looks_at_are_refused_before_the_work(tmp_path: Path, images: Path) -> None:
    for command in (("caption", images, "-o", tmp_path / "out", "--show"), ("status", tmp_path, "--captions")):
        done = batchcap(*command, 10**24)
        assert_refused(done, f"{command[-1]} must be at most 1000000")
    assert not (tmp_path / "out").exists()


def test_verbose_says_no_less(tmp_path: Path, images: Path, tiny_bundle_int4: Bundle) -> None:
    command = ("caption", images, "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 4, "-o")
    usual, verbose = batchcap(*command, tmp_path / "a"), batchcap("-v", *command, tmp_path / "b")
    assert verbose.returncode == 0
    assert len(verbose.stderr.splitlines()) >= len(usual.stderr.splitlines())
    assert "Traceback" not in verbose.stderr


@pytest.mark.parametrize("size", [(24, 120), (24, 0), (0, 0)], ids=["wide", "unknown width", "unknown size"])
def test_a_bar_with_rate_and_time_left_on_a_terminal(
    tmp_path: Path, images: Path, tiny_bundle_int4: Bundle, size: tuple[int, int]
) -> None:
    arguments = ["caption", str(images), "-o", str(tmp_path / "out"), "-m", str(tiny_bundle_int4.folder)]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, size)
    with subprocess.Popen(
        [sys.executable, "-m", "batchcap.cli", *arguments, *ONNX, "--max-new-tokens", "4"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        screen = _read_to_end(ours)
        stdout, _nothing = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert re.search(r"100%\|█*\| 6/6 \[\d\d:\d\d<\d\d:\d\d, .*(row/s|s/row), [\d.]+ images/min, failed 0", screen), (
        screen
    )
    assert "6 captions, 0 failed" in stdout.decode()
    assert "row/s" not in stdout.decode()
    assert len(read_rows(tmp_path / "out")) == 6


def _read_to_end(terminal: int) -> str:
    screen = b""
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # how a terminal says that nobody writes to it any more
            os.close(terminal)
            return screen.decode()
        screen += block


def test_status_of_a_finished_job_and_as_json(tmp_path: Path, images: Path, tiny_bundle_int4: Bundle) -> None:
    (images / "9.png").write_text("no image")
    output = tmp_path / "out"
    done = batchcap("caption", images, "-o", output, "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr
    text = batchcap("status", output)
    assert (text.returncode, text.stderr) == (0, "")
    assert f"{output}: complete" in text.stdout
    assert "7 of 7 done (100.0 %), 0 left" in text.stdout
    assert "1 (not_an_image 1)" in text.stdout
    content = json.loads(batchcap("status", output, "--json").stdout)
    assert (content["state"], content["rows"], content["ok"], content["failed"]) == ("complete", 7, 6, 1)
    assert content["error_kinds"] == {"not_an_image": 1}

    state = JobFolder(output).state_path
    state.chmod(0o555)  # a job of somebody else
    try:
        again = batchcap("status", output)
    finally:
        state.chmod(0o755)
    assert (again.returncode, again.stdout, again.stderr) == (0, text.stdout, "")


def test_doctor(tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    done = batchcap("doctor", "--model", tiny_bundle_int4.folder)
    assert done.returncode == 0
    assert re.fullmatch(r"\S+ checking that captions are the same in every batch\n", done.stderr)
    for word in (
        "onnxruntime",
        "cores",
        "memory",
        "all checksums verified",
        "PyTorch",
        "KV cache",
        "the same caption everywhere",
        "equal in batches of 1 to 32",
        "no problem found",
    ):
        assert word in done.stdout
    unchecked = batchcap("doctor", "--model", tiny_bundle_int4.folder, "--no-check")
    assert (unchecked.returncode, unchecked.stderr) == (0, "")
    assert "the same caption everywhere" not in unchecked.stdout
    machine = batchcap("doctor")
    assert (machine.returncode, machine.stderr) == (0, "")
    assert "none: add --model BUNDLE" in machine.stdout
    assert "KV cache" not in machine.stdout
    broken = batchcap("doctor", "--model", tmp_path, "--json")
    assert broken.returncode == 2
    content = json.loads(broken.stdout)
    assert "is not a bundle" in content["problems"][0]
    assert content["versions"]["batchcap"] == __version__


def test_export_prints_the_bundle_alone(tmp_path: Path, tiny_checkpoint: Path) -> None:
    done = batchcap("export", tiny_checkpoint, "-o", tmp_path / "bundle", "--block-size", 32, "--context", 512)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{re.escape(str(tmp_path / 'bundle'))}  int4 block 32 rtn  id [0-9a-f]{{16}}\n", done.stdout)
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("command", ["caption photos -o out", "run job.toml", "status out", "doctor"])
def test_a_working_folder_that_is_gone(tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "{sys.executable}" -m batchcap.cli {command}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert_refused(done, "the working folder is not there", "Change to a folder that exists (cd)")
