"""The tests. The import below comes before any library's.

It switches off what libraries collect and send (`batchcap.core.offline`), and sets how PyTorch's threads wait.
"""

import batchcap.vision  # noqa: F401
