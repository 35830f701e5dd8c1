"""What a target of the fuzzer is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads what others wrote.

    Attributes:
        name: for the command line.
        seeds: makes good inputs.
        read: takes one input, which is also in a file; raises BatchcapError or RowError where it refuses it.
        is_lenient: whether most damage costs single rows, and few inputs are refused.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], None]
    is_lenient: bool = False
