"""Owns the reading of `mutants.toml`: what each mutant changes, and which tests must fail with it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.toml")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A plausible bug.

    Attributes:
        name: what it is called on the command line.
        file: relative to the repository.
        old: text that is in the file once.
        new: what stands in its place.
        tests: files or node ids that must fail with it.
        why: what would go wrong for a person.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str

    def applied(self, text: str) -> str:
        """The file's text with the bug in it.

        Raises:
            ValueError: the place is not there, or not the only one.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the old text is {count} times in {self.file}, not once")
        return text.replace(self.old, self.new)


def read_mutants() -> list[Mutant]:
    """All mutants, in the order of the list."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
