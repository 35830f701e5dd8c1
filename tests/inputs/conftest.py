"""What all tests of inputs have: a cache folder of their own, so that no index is one of another test."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; not inside of `tmp_path`, in which tests look for images."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BATCHCAP_CACHE", str(folder))
    return folder
