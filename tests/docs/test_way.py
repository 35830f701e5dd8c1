"""The way of one image that docs/architecture.md tells of is the way that one really takes, through all processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from batchcap.model.bundle import Bundle
from tests.docs.markdown import PROJECT, section, table, text_of

# Runs in every process at its start: writes down when the functions of the table are called.
WATCH = """
import os, sys, threading, time
wanted = set(os.environ["WATCHED"].split())
def watch(frame, event, _argument):
    if event == "call":
        name = f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}"
        if name in wanted:
            with open(os.environ["WATCHED_FILE"], "a") as file:
                file.write(f"{time.monotonic_ns()} {name}\\n")
sys.setprofile(watch)
threading.setprofile(watch)
"""
STARTED = "batchcap.job.loop.caption_rows"


def way() -> list[str]:
    """The functions of the table, in its order."""
    rows = table(section(text_of("docs/architecture.md"), "## The way of one image"))
    return [f"batchcap.{name}" for row in rows for name in re.findall(r"`([\w.]+)`", row[0])]


def test_an_image_takes_the_way_that_is_told(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    told = way()
    assert len(told) >= 15
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "image.png")
    seen = tmp_path / "seen"
    command = [sys.executable, "-m", "batchcap.cli", "caption", str(tmp_path / "image.png")]
    command += ["--model", str(tiny_bundle_fp32.folder), "--output", str(tmp_path / "out"), "--vision-dtype", "fp32"]
    watched = {"PYTHONPATH": str(tmp_path / "watch"), "WATCHED": " ".join(told), "WATCHED_FILE": str(seen)}
    environment = {**os.environ, **watched}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calls = sorted((int(time_ns), name) for time_ns, name in map(str.split, seen.read_text().splitlines()))
    # Workers try out their model before they take work: of what comes after the start, the calls after it count.
    started_ns = next(time_ns for time_ns, name in calls if name == STARTED)
    first: dict[str, int] = {}
    for time_ns, name in calls:
        if time_ns >= started_ns or told.index(name) < told.index(STARTED):
            first.setdefault(name, time_ns)
    assert sorted(first, key=first.__getitem__) == told, sorted(set(told) - set(first))
