"""A job where the kernel tells little of itself: a service with ProcSubset=pid, a sandbox, a chroot."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from batchcap.model.bundle import Bundle
from tests.e2e.command import ONNX, TIMEOUT_S, read_rows

NAMESPACE = ["unshare", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec"]


@pytest.mark.parametrize(
    "hide",
    [
        "mount --bind /dev/null /proc/meminfo && mount -t tmpfs none /sys/fs/cgroup",
        "mount -t proc -o subset=pid proc /proc && mount -t tmpfs none /sys",
    ],
)
def test_a_job_where_the_kernel_is_hidden(tiny_bundle_fp32: Bundle, tmp_path: Path, hide: str) -> None:
    if subprocess.run([*NAMESPACE, hide], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces here")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    told = ["--model", str(tiny_bundle_fp32.folder), "--max-new-tokens", "4", "--max-visual-tokens", "16", *ONNX]
    command = [
        sys.executable,
        "-m",
        "batchcap.cli",
        "caption",
        str(tmp_path / "red.png"),
        "-o",
        str(tmp_path / "out"),
        *told,
    ]
    done = subprocess.run(
        [*NAMESPACE, f'{hide}; exec "$0" "$@"', *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in read_rows(tmp_path / "out")] == ["ok"]
