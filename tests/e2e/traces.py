"""What a command asked of the network and left on the disk: run by a new user, its calls recorded by strace."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STRACE = ("strace", "--seccomp-bpf", "-f", "-qq", "-e", "trace=network", "-o")
# Should anything try to send all the same, it gets no further than this machine: nothing listens there.
NOWHERE = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
# Whoever wants one thing only on this machine has no use for any other kind of socket. A question of the C library for
# a user's name goes to a service by its path, if there is one; one for a host's name would go to another path.
LOCAL_SOCKETS = re.compile(r"\b(socket|socketpair)\(AF_UNIX,")
USER_NAMES = re.compile(
    r'\bconnect\(\d+, \{sa_family=AF_UNIX, sun_path="(/var)?/run/(nscd/socket|systemd/userdb/[^"]*)"'
)
OPENS = re.compile(r"\b(socket|socketpair|connect|bind)\(")
SENDS_TO_A_NAME = re.compile(r"\bsend(to|msg|mmsg)\(.*(sin_|sin6_|sun_path)")


@cache
def why_no_trace() -> str | None:
    """What keeps this machine from tracing."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian and Ubuntu: apt-get install strace), so calls can't be seen"
    done = subprocess.run([*STRACE, os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"strace can't trace here: {done.stderr.strip()}" if done.returncode else None


@dataclass(frozen=True)
class Home:
    """A new user's home folder, temporary folder and working folder, below one folder."""

    folder: Path

    @property
    def trace(self) -> Path:
        """The calls of what ran last."""
        return self.folder / "trace"

    def environment(self) -> dict[str, str]:
        """What that user's shell exports: nothing that tells a library to be quiet."""
        for name in ("home", "tmp", "work"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Which batchcap is tested, the same as by other tests: a copy's (`tests.mutants`), for one.
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
            **PROXIES,
        }

    def command(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Run `batchcap`, traced where that is possible."""
        return self.python("-m", "batchcap.cli", *arguments)

    def python(self, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run Python, traced where that is possible."""
        tracer = () if why_no_trace() else (*STRACE, str(self.trace))
        return subprocess.run(
            [*tracer, sys.executable, *map(str, arguments)],
            env={**self.environment(), **environment},
            cwd=self.folder / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def files(self) -> list[str]:
        """Every file, relative to the folder; the trace is none of them."""
        found = [path for path in self.folder.rglob("*") if not path.is_dir() and path != self.trace]
        return sorted(str(path.relative_to(self.folder)) for path in found)

    def calls(self) -> list[str]:
        """The calls by which something may leave this machine, or a host's name be asked for."""
        return suspicious(self.trace.read_text(errors="replace").splitlines())


def suspicious(calls: Sequence[str]) -> list[str]:
    """Of strace's lines those that are more than talk between processes of this machine."""
    opened = [call for call in calls if OPENS.search(call)]
    sent = [call for call in calls if SENDS_TO_A_NAME.search(call)]
    return [call for call in opened if not (LOCAL_SOCKETS.search(call) or USER_NAMES.search(call))] + sent
