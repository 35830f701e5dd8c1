"""Running batchcap as a person does: the installed command, in a folder of its own, with one demo export for all."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.store.folder import JobFolder

PROJECT = Path(__file__).parents[2]
TIMEOUT_S = 240


@dataclass(frozen=True)
class Shell:
    """A folder to stand in, and the environment of its commands."""

    folder: Path
    cache: Path
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the `batchcap` of this Python first on the path."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "BATCHCAP_CACHE": str(self.cache), **self.extra}

    def run(self, line: str) -> "subprocess.CompletedProcess[str]":
        """Run one line of shell."""
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self, line: str) -> "subprocess.Popen[bytes]":
        """Start one line of shell as a process group of its own."""
        return subprocess.Popen(
            ["sh", "-c", f"exec {line}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def read_captions(output: Path) -> pa.Table:
    """All caption rows of a job folder, in order."""
    parts = JobFolder(output).part_paths()
    return pa.concat_tables([pq.read_table(part) for part in parts])
