"""Makes the job folders, bundle, tuning file and job files in `tests/data/format-N`, with the code of its day.

Run it once when a format is about to change, before the change, and keep what it made for good:

    python -m tests.compat.generate N

Inputs lie in `ROOT` while it runs, so that no path of a machine gets into the data.
"""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from batchcap.config import VisionBackend, VisionDtype
from batchcap.engines.profiles import Settings, Tuned
from batchcap.engines.tuned import write_tuned
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.export import export_bundle
from tests.checkpoints import Shape, make_checkpoint
from tests.compat.scenes import BUNDLE, INPUTS, JOBS, ROOT, Scene
from tests.e2e.inputs import write_images, write_parquet
from tests.e2e.process import Process, durable_rows, run

IMAGES, PARQUET_ROWS = 20, 12
SHAPE = Shape(layers=2, hidden=64, heads=2, kv_heads=1, intermediate=128, vision_depth=2, vision_hidden=32,
              vision_heads=2, levels=(0, 1))  # fmt: skip
# What is of one process or one machine, and no part of a job.
NOT_KEPT = ("journal.sqlite-shm", "lock", "holder.json")


def main() -> None:
    """Write `tests/data/format-N`."""
    data = Path(__file__).parents[1] / "data" / f"format-{int(sys.argv[1])}"
    shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    bundle = export_bundle(str(make_checkpoint(ROOT / "checkpoint", SHAPE)), ROOT / BUNDLE, ExportOptions(context=1024))
    write_images(ROOT / INPUTS / "images", IMAGES)
    write_parquet(ROOT / INPUTS / "rows.parquet", PARQUET_ROWS)
    for scene in JOBS:
        make_job(scene)
    shutil.copytree(ROOT / BUNDLE, data / BUNDLE)
    shutil.copytree(ROOT / INPUTS, data / INPUTS, copy_function=shutil.copy2)
    times = {str(path.relative_to(ROOT)): path.stat().st_mtime_ns for path in (ROOT / INPUTS).rglob("*.*")}
    (data / "mtimes.json").write_text(json.dumps(times, indent=1, sort_keys=True) + "\n")
    shutil.copytree(ROOT / "jobs", data / "jobs", ignore=shutil.ignore_patterns(*NOT_KEPT))
    settings = Settings(slots=12, vision_backend=VisionBackend.ONNX, vision_dtype=VisionDtype.FP32)
    tuned = Tuned(settings, datetime(2026, 11, 29, 12, tzinfo=UTC), 1.25, rounded_vision=False)
    shutil.copy(write_tuned(bundle.id, tuned, []), data / "tuning.json")


def make_job(scene: Scene) -> None:
    """Run one job, or leave it half done."""
    output = ROOT / "jobs" / scene.name
    begun = scene.arguments(ROOT, output)
    if scene.retry:
        run(*begun)
        begun = (*begun, *scene.retry)
    if scene.kill_after is None:
        run(*begun)
        return
    process = Process(*begun)
    assert process.wait_until(_done(output, scene.kill_after, retry=bool(scene.retry))), process.stderr
    process.signal_group(signal.SIGKILL)
    process.wait()


def _done(output: Path, rows: int, *, retry: bool) -> Callable[[], bool]:
    if not retry:
        return lambda: durable_rows(output)[0] >= rows
    return lambda: durable_rows(output)[1] >= rows  # rows that are in a part, too: captioned a second time


if __name__ == "__main__":
    main()
