"""Fixtures that several areas share: tiny random checkpoints and their bundles, made once a session."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.export import export_bundle
from batchcap.model.bundle import Bundle
from tests.checkpoints import make_checkpoint

# The same examples in each run: a test must not fail by chance. HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# Under `nohup` SIGHUP is ignored here and in every process that the tests start, as batchcap respects.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3-VL checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def _export(checkpoint: Path, factory: pytest.TempPathFactory, precision: Precision) -> Bundle:
    output = factory.mktemp("bundle") / str(precision)
    options = ExportOptions(precision=precision, block_size=32, context=1024)
    return export_bundle(str(checkpoint), output, options)


@pytest.fixture(scope="session")
def tiny_bundle_fp32(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with an fp32 decoder."""
    return _export(tiny_checkpoint, tmp_path_factory, Precision.FP32)


@pytest.fixture(scope="session")
def tiny_bundle_int4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with an INT4 decoder."""
    return _export(tiny_checkpoint, tmp_path_factory, Precision.INT4)


@pytest.fixture(scope="session")
def tiny_bundle_int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with an INT8 decoder."""
    return _export(tiny_checkpoint, tmp_path_factory, Precision.INT8)


@pytest.fixture(scope="session")
def tiny_bundle_w8a8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with a decoder of integer products."""
    return _export(tiny_checkpoint, tmp_path_factory, Precision.W8A8)
