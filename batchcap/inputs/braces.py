"""Owns ranges of numbers in the names of inputs, as WebDataset writes them: `shard-{0000..0127}.tar`."""

import re
from collections.abc import Iterator

_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")


def has_range(name: str) -> bool:
    """Whether a name stands for several."""
    return _RANGE.search(name) is not None


def expanded(name: str) -> Iterator[str]:
    """The names that a name with ranges stands for, in the order of a shell: the first range changes last.

    Numbers are as wide as the wider end of a range, if one end begins with a zero.
    """
    found = _RANGE.search(name)
    if found is None:
        yield name
        return
    first, last = found.groups()
    width = max(len(first), len(last)) if any(len(end) > 1 and end.startswith("0") for end in (first, last)) else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        for rest in expanded(name[found.end() :]):
            yield f"{name[: found.start()]}{number:0{width}d}{rest}"


def without_ranges(name: str) -> str:
    """The name up to its first range."""
    return _RANGE.split(name, maxsplit=1)[0]
