"""SIGKILL of conversions between two objects: what comes out is as if nothing had happened."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.config import JobConfig, OutputsConfig
from batchcap.outputs.convert import convert
from tests.e2e.process import STARTED, Process
from tests.images.samples import encode, noise
from tests.outputs.conftest import Run
from tests.outputs.test_addresses import tree, without_mark
from tests.stores import FaultyBucket

IMAGES, KILLS = 60, 4
# Objects that may be under way when a process is killed, and are put again.
UNDER_WAY = 16


@pytest.mark.slow
@pytest.mark.parametrize("form", ["txt", "imagefolder", "webdataset"])
def test_a_conversion_that_is_killed_goes_on(
    config: JobConfig, run: Run, tmp_path: Path, faulty: FaultyBucket, form: str
) -> None:
    for number in range(IMAGES):
        (tmp_path / "in" / f"{number:02d}.png").write_bytes(encode(noise(8, 8)))
    run(replace(config, placement=replace(config.placement, rows_per_part=5)))
    convert(Path(config.output), [f"{form}:{tmp_path / 'x'}"], OutputsConfig())
    command = ("convert", config.output, "--to", f"{form}:{faulty.bucket.address}/x", "--allow-remote")
    try:
        for number in range(KILLS + 1):
            process = Process(*command, environment=faulty.environment, warm=True)
            if number < KILLS:
                enough = faulty.way.count("PUT") + number
                assert process.wait_until(lambda enough=enough: faulty.way.count("PUT") > enough, 0.0005)  # type: ignore[misc]
                process.signal_group(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
            else:
                assert process.wait() == 0, process.stderr
    finally:
        while STARTED:
            STARTED.pop().put_away()
    objects = {name.removeprefix("x/"): one for name, one in faulty.bucket.objects().items()}
    assert without_mark(objects) == without_mark(tree(tmp_path / "x"))
    assert faulty.way.count("PUT") <= len(objects) + KILLS * UNDER_WAY
    (written,) = convert(Path(config.output), [f"{form}:{faulty.bucket.address}/x"], OutputsConfig(), allow_remote=True)
    assert written.kept == 0
