"""What the tests of inputs share: indexes of large inputs are kept away from the user's."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHCAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
