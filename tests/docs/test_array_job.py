"""The array job of jobs/: each task asks for its own shard, into its own folder."""

import os
import re
import subprocess
from pathlib import Path

from batchcap.config import InputConfig
from tests.docs.markdown import PROJECT

SCRIPT = PROJECT / "jobs/array.sbatch"


def test_each_task_captions_its_own_shard(tmp_path: Path) -> None:
    command = tmp_path / "batchcap"
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    (last,) = re.findall(r"^#SBATCH --array=1-(\d+)", SCRIPT.read_text(), re.M)
    folders = set()
    for task in range(1, int(last) + 1):
        surroundings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)}
        done = subprocess.run(["bash", str(SCRIPT)], env=surroundings, capture_output=True, text=True, check=True)
        given = done.stdout.splitlines()
        assert InputConfig(("x",), shard=given[given.index("--shard") + 1]).shard_of == (task, int(last))
        folders.add(given[given.index("--output") + 1])
    assert len(folders) == int(last)
