"""The tests. The import below sets how PyTorch's threads wait, before any test loads torch."""

import batchcap.vision  # noqa: F401
