"""What tests of exports put back."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads_put_back() -> Iterator[None]:
    """PyTorch's threads: a calibration sets them for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
