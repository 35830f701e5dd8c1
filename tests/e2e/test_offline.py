"""Nothing leaves the machine and nothing is left on it: every command under strace, in the home of a new user."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchcap.core import offline
from batchcap.model.bundle import Bundle
from tests.e2e.command import ONNX, batchcap
from tests.e2e.inputs import write_images
from tests.e2e.traces import Home, suspicious, why_no_trace

pytestmark = pytest.mark.slow
COMMANDS = ("--help", "export", "verify", "caption", "run", "status", "report", "doctor", "tune")
NOISE = "telemetry"
# A program of batchcap without `batchcap.core.offline`. It waits for the first upload, some seconds later.
WITHOUT_OWNER = """
import pathlib, sys, time, types
sys.modules["batchcap.core.offline"] = types.SimpleNamespace(apply=lambda: None)
import batchcap, onnxruntime
onnxruntime.InferenceSession(sys.argv[1])
trace, ends_s = pathlib.Path(sys.argv[2]), time.monotonic() + 30
while trace.exists() and "AF_INET" not in trace.read_text() and time.monotonic() < ends_s:
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Ran:
    """A command that was run in a home of its own."""

    home: Home
    done: "subprocess.CompletedProcess[str]"

    def must_have_worked(self) -> None:
        """3: one of the inputs is no image. 2: what `doctor` thinks of this CPU, or `tune` of its little time."""
        assert (
            self.done.returncode in (0, 3)
            or re.search("^problem: on this CPU", self.done.stdout, re.MULTILINE)
            or ("measuring 1: " in self.done.stderr and "too short" in self.done.stderr)
        ), self.done.stderr
        assert "Traceback" not in self.done.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("inputs") / "pictures", 6)


@pytest.fixture(scope="module")
def finished(images: Path, tiny_bundle_int4: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job, for the commands that read one."""
    output = tmp_path_factory.mktemp("finished") / "output"
    command = ("caption", images, "--output", output, "--model", tiny_bundle_int4.folder, "--max-new-tokens", 8)
    assert batchcap(*command, *ONNX).returncode in (0, 3)
    return output


@pytest.fixture(scope="module", params=COMMANDS)
def ran(
    request: pytest.FixtureRequest,
    images: Path,
    finished: Path,
    tiny_checkpoint: Path,
    tiny_bundle_int4: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ran:
    """Each command once; what it may write goes to `output`."""
    one_image = ("--images", images / "0" / "0003.png")
    home, model = Home(tmp_path_factory.mktemp("user")), ("--model", tiny_bundle_int4.folder)
    output = home.folder / "output"
    captioning = ("caption", images, "--output", output, *model, "--max-new-tokens", "8")
    if request.param in ("status", "report"):
        shutil.copytree(finished, output)
    if request.param == "run":
        job = home.folder / "work" / "job.toml"
        home.environment()
        job.write_text(
            f'output = "{output}"\nmodel = "{tiny_bundle_int4.folder}"\n[input]\ninputs = ["{images}"]\n'
            '[generation]\nmax_new_tokens = 8\n[vision]\nbackend = "onnx"\n'
        )
    arguments: dict[str, tuple[object, ...]] = {
        "--help": ("--help",),
        "export": ("export", tiny_checkpoint, "--output", output, "--context", 256),
        "verify": ("verify", tiny_bundle_int4.folder, "--checkpoint", tiny_checkpoint, *one_image),
        "caption": captioning,
        "run": ("run", home.folder / "work" / "job.toml"),
        "status": ("status", output, "--captions", 2),
        "report": ("report", output),
        "doctor": ("doctor",),  # with the demo model, so that is exported, too
        "tune": ("tune", *model, "--minutes", 0.1),
    }
    return Ran(home, home.command(*arguments[request.param]))


def test_a_command_leaves_no_file_but_its_results(ran: Ran) -> None:
    ran.must_have_worked()
    allowed = ("home/.cache/batchcap/", "output/", "work/job.toml")
    assert [path for path in ran.home.files() if not path.startswith(allowed)] == []


def test_a_command_asks_nothing_of_the_network(ran: Ran) -> None:
    if reason := why_no_trace():
        pytest.skip(reason)
    ran.must_have_worked()
    assert ran.home.calls() == []


def test_without_the_owner_both_would_be_seen(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    """The tests above can fail: onnxruntime left to itself writes files and asks for the network."""
    if reason := why_no_trace():
        pytest.skip(reason)
    home = Home(tmp_path)
    graph = tiny_bundle_int4.folder / "vision" / "fp32.onnx"
    done = home.python("-c", WITHOUT_OWNER, graph, home.trace)
    assert done.returncode == 0, done.stderr
    assert "home/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid" in home.files()
    assert any("socket(AF_INET" in call for call in home.calls())


def test_a_home_that_cannot_be_written_is_no_reason_for_noise(
    tmp_path: Path, images: Path, tiny_bundle_int4: Bundle
) -> None:
    home, graph = Home(tmp_path), tiny_bundle_int4.folder / "vision" / "fp32.onnx"
    assert NOISE in home.python("-c", WITHOUT_OWNER, graph, "nothing", HOME="/dev/null/home").stderr
    words = ("caption", images, "--output", tmp_path / "output", "--model", tiny_bundle_int4.folder)
    environment = {"HOME": "/dev/null/home", "BATCHCAP_CACHE": str(tmp_path / "cache")}
    done = home.python("-m", "batchcap.cli", *words, *ONNX, "--max-new-tokens", 8, **environment)
    assert done.returncode in (0, 3), done.stderr
    assert NOISE not in done.stderr


def test_switches_hold_over_what_the_caller_set(tmp_path: Path) -> None:
    code = (
        "import batchcap, os; from batchcap.core.offline import SWITCHES, faults; assert not faults(); "
        "assert all(os.environ[name] == value for name, value, _libraries in SWITCHES); "
        "from huggingface_hub import constants as hub; assert hub.HF_HUB_OFFLINE and hub.HF_HUB_DISABLE_TELEMETRY; "
        "from datasets import config; assert config.HF_HUB_OFFLINE and not config.HF_UPDATE_DOWNLOAD_COUNTS"
    )
    otherwise = {switch.variable: "1" if switch.value == "0" else "0" for switch in offline.SWITCHES}
    done = Home(tmp_path).python("-c", code, **otherwise)
    assert done.returncode == 0, done.stderr


def test_a_library_that_was_loaded_first_is_told_of(tmp_path: Path) -> None:
    code = "import huggingface_hub; from batchcap.core.offline import faults; print(faults())"
    assert "huggingface-hub was loaded before batchcap" in Home(tmp_path).python("-c", code).stdout


def test_these_tests_send_nothing_either() -> None:
    assert offline.faults() == []


def test_calls_that_are_found_suspicious() -> None:
    harmless = [
        "7 socketpair(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0, [3, 4]) = 0",
        '7 connect(3, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1 ENOENT (No such file)',
        '7 sendto(3, "\\200", 1, MSG_NOSIGNAL, NULL, 0) = 1',
    ]
    others = [
        "7 socket(AF_INET, SOCK_DGRAM|SOCK_CLOEXEC, IPPROTO_IP) = 13",
        "7 socket(AF_INET6, SOCK_DGRAM, IPPROTO_IP <unfinished ...>",
        "7 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 3",
        '7 connect(3, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}, 42) = 0',
        '7 connect(13, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.1")}, 16) = 0',
        '7 bind(3, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("127.0.0.1")}, 16) = 0',
        '7 sendto(3, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.1")}, 16) = 1',
    ]
    assert suspicious(harmless + others) == others
