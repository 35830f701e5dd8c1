"""batchcap's own command line, read from the summary it leaves.

usage: python -m peers.run_batchcap TASK.json BUNDLE [options of `batchcap caption`] …
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from batchcap.store.folder import JobFolder
from peers.protocol import STAGES, TOKEN_SIDE_PX, Outcome, Task, serve, versions


def run(task: Task, bundle: Path, options: list[str]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return _caption(task, bundle, options, str(Path(folder) / "job"))


def _caption(task: Task, bundle: Path, options: list[str], job: str) -> Outcome:
    command = [str(Path(sys.executable).with_name("batchcap")), "caption", *task.images]
    command += ["--output", job, "--model", str(bundle), "--prompt", task.prompt]
    command += ["--max-visual-tokens", str(task.max_pixels // TOKEN_SIDE_PX**2)]
    # Random weights never stop, and loop as they please.
    command += ["--max-new-tokens", str(task.new_tokens), "--no-loop-stop"]
    # What `batchcap tune` once found on this machine must not decide.
    environment = os.environ | {"BATCHCAP_CACHE": str(bundle.parent / "cache")}
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, env=environment)
    summary = json.loads(JobFolder(Path(job)).summary_path.read_text(encoding="utf-8"))
    figures: dict[str, Any] = summary["run"]
    busy: dict[str, float] = figures["stage_busy_s"]
    return Outcome(
        images=figures["images"],
        new_tokens=figures["new_tokens"],
        visual_tokens=_visual_tokens(job),
        wall_s=figures["working_s"],
        stage_s={stage: busy.get(stage, 0.0) for stage in STAGES},
        precision=summary["bundle"]["precision"],
        versions=versions("batchcap", "torch", "onnxruntime"),
    )


def _visual_tokens(job: str) -> int:
    # Imported after the job, so that it takes no part in the memory that is watched.
    import pyarrow.parquet as pq  # noqa: PLC0415

    return sum(pq.read_table(job, columns=["visual_tokens"])["visual_tokens"].to_pylist())


if __name__ == "__main__":
    serve(run)
