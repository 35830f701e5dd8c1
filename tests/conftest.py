"""Fixtures that several areas share: tiny random checkpoints and their bundles, made once a run.

The heavy imports are inside of the fixtures: pytest-xdist's controller reads this file, too, and runs no test.
"""

import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from batchcap.export.checkpoint.options import ExportOptions, Precision
from tests.shared import made_once, shared_bundle, shared_folder
from tests.stores import bucket, faulty  # noqa: F401 - fixtures
from tests.web import web  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from batchcap.model.bundle import Bundle

# Seconds of processor time that files of tests take; those that take few are not listed.
DURATIONS = Path(__file__).parent / "durations.toml"

# The same examples in each run: a test must not fail by chance. HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# Under `nohup` SIGHUP is ignored here and in every process that the tests start, as batchcap respects.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that several processes are through at about the same time."""
    files = tomllib.loads(DURATIONS.read_text(encoding="utf-8"))
    items.sort(key=lambda item: -files.get(item.path.relative_to(DURATIONS.parent).as_posix(), 0))


@pytest.fixture(scope="session", autouse=True)
def _drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The model builder draws each kind of graph once; `drawings.drawn_anew` is for tests that need more of it."""
    from tests.export.drawings import drawn_once  # noqa: PLC0415

    with drawn_once(shared_folder(tmp_path_factory) / "drawings"):
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3-VL checkpoint."""
    from tests.checkpoints import make_checkpoint  # noqa: PLC0415

    return made_once(shared_folder(tmp_path_factory) / "checkpoint" / "tiny", make_checkpoint)


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder (BATCHCAP_CACHE) with the demo model's bundle; take a `linked_copy`, commands write into it."""
    from batchcap.export.demo import demo_bundle  # noqa: PLC0415

    def export(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BATCHCAP_CACHE", str(folder))
            demo_bundle()

    return made_once(shared_folder(tmp_path_factory) / "demo-cache", export)


def _tiny(checkpoint: Path, factory: pytest.TempPathFactory, precision: Precision) -> "Bundle":
    options = ExportOptions(precision=precision, block_size=32, context=1024)
    return shared_bundle(factory, str(precision), checkpoint, options)


@pytest.fixture(scope="session")
def tiny_bundle_fp32(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> "Bundle":
    """The tiny checkpoint with an fp32 decoder."""
    return _tiny(tiny_checkpoint, tmp_path_factory, Precision.FP32)


@pytest.fixture(scope="session")
def tiny_bundle_int4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> "Bundle":
    """The tiny checkpoint with an INT4 decoder."""
    return _tiny(tiny_checkpoint, tmp_path_factory, Precision.INT4)


@pytest.fixture(scope="session")
def tiny_bundle_int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> "Bundle":
    """The tiny checkpoint with an INT8 decoder."""
    return _tiny(tiny_checkpoint, tmp_path_factory, Precision.INT8)


@pytest.fixture(scope="session")
def tiny_bundle_w8a8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> "Bundle":
    """The tiny checkpoint with a decoder of integer products."""
    return _tiny(tiny_checkpoint, tmp_path_factory, Precision.W8A8)
