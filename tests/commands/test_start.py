"""What a command leaves out of its start."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pandas")

JOB = Path(__file__).parents[1] / "data" / "format-2" / "jobs" / "finished-files"
REPORT = """
import sys
from batchcap import cli
try:
    cli.main()
finally:
    sys.stderr.write(f"loaded: {sys.modules.get('pandas')}, {'pyarrow' in sys.modules}")
"""


def test_pyarrow_does_not_load_pandas(tmp_path: Path) -> None:
    job = shutil.copytree(JOB, tmp_path / "job")
    command = [sys.executable, "-c", REPORT, "report", str(job), "--to", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("loaded: None, True")
