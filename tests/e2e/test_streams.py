"""A stdout that can't be written is a plain error, whichever command it is; a reader that leaves is none."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from batchcap.model.bundle import Bundle
from tests.e2e.command import TIMEOUT_S, batchcap, read_rows


def shell(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell in which `batchcap` is this Python's."""
    line = f'set -o pipefail; batchcap() {{ {sys.executable} -m batchcap.cli "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def output(tiny_bundle_int4: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job, whose captions were shown to a full disk."""
    folder = tmp_path_factory.mktemp("job")
    Image.new("RGB", (64, 48), (200, 30, 40)).save(folder / "0.png")
    options = f"-m {tiny_bundle_int4.folder} --max-new-tokens 4 --vision-backend onnx --show 1"
    done = shell(f"batchcap caption {folder / '0.png'} -o {folder / 'out'} {options} > /dev/full")
    assert_told(done)
    return folder / "out"


def assert_told(done: "subprocess.CompletedProcess[str]") -> None:
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1, done.stderr
    assert last.startswith("batchcap: error: can't write the results to stdout (No space left on device): ")
    assert "bug" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_captions_that_could_not_be_shown_are_safe(output: Path) -> None:
    assert [row["status"] for row in read_rows(output)] == ["ok"]
    assert "complete" in batchcap("status", output).stdout


@pytest.mark.parametrize("command", ["status", "status --json", "report", "--version", "caption --help", "doctor"])
def test_every_command_says_that_its_results_are_lost(output: Path, command: str) -> None:
    place = output if command.startswith(("status", "report")) else ""
    assert_told(shell(f"batchcap {command} {place} > /dev/full"))
    left = shell(f"batchcap {command} {place} | true")
    assert (left.returncode, left.stderr) == (0, "")


def test_what_is_written_only_at_the_end(tmp_path: Path) -> None:
    """As a library's print: it is still in memory when the command is over."""
    code = "import sys; from batchcap import cli; cli.app = lambda: print('x'); cli.main()"
    (tmp_path / "late.py").write_text(code)
    assert_told(shell(f"{sys.executable} {tmp_path / 'late.py'} > /dev/full"))


def test_an_error_stream_that_is_lost_changes_no_exit_code(output: Path) -> None:
    assert shell(f"batchcap status {output.parent} 2> /dev/full").returncode == 2
    assert shell("batchcap caption 2> /dev/full").returncode == 2
    assert shell(f"batchcap -v status {output} 2> /dev/full").returncode == 0


def test_options_of_the_log_after_the_command(output: Path, tiny_bundle_int4: Bundle) -> None:
    job = ("caption", output.parent / "0.png", "-o", output, "-m", tiny_bundle_int4.folder, "--max-new-tokens", 4)
    for quiet in (("--quiet",), ("-q",)):
        done = batchcap(*job, "--vision-backend", "onnx", "--on-changed", "keep", *quiet)
        assert (done.returncode, done.stderr) == (0, "")
    assert batchcap("doctor", "--verbose").returncode == 0
    assert "--quiet" not in batchcap("caption", "--help").stdout, "it would be on every page"


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (("--json", "status", "OUT"), "batchcap status … --json"),
        (("-m", "demo", "caption", "x"), "batchcap caption … -m"),
        (("--show", "3", "run", "x"), "batchcap run … --show"),
    ],
)
def test_an_option_before_its_command_is_answered_with_the_right_order(arguments: tuple[str, ...], right: str) -> None:
    done = batchcap(*arguments)
    assert done.returncode == 2
    assert f"goes after its command: {right}" in done.stderr


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && batchcap status captions")
    assert done.returncode == 2
    assert "the working folder is not there" in done.stderr
