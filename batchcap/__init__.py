"""batchcap captions images in bulk on ordinary CPUs, with no network and nothing lost."""

from batchcap.core import offline

__version__ = "0.1.0"

# Before any other module of batchcap, and so before any library that reads the environment when it is imported.
offline.apply()
