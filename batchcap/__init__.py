"""batchcap captions pictures in bulk on ordinary CPUs, with no network and nothing lost."""

__version__ = "0.1.0"
