"""Owns what a verification says: one row a check, as a table for a person and as JSON."""

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchcap.core.text import aligned

FORMAT_VERSION = 1
_HEADERS = ("check", "measured", "tolerance", "", "worst")


class Bound(StrEnum):
    """On which side of its tolerance a measured value must stay."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"


@dataclass(frozen=True, slots=True)
class Row:
    """One check.

    Attributes:
        check: what was compared.
        measured: the worst value found.
        tolerance: how far it may go; a value at the tolerance passes, one that is not a number never does.
        bound: on which side.
        unit: of both numbers; empty for plain ones.
        worst: where the worst value was found.
    """

    check: str
    measured: float
    tolerance: float
    bound: Bound = Bound.AT_MOST
    unit: str = ""
    worst: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within the tolerance."""
        if self.bound is Bound.AT_MOST:
            return self.measured <= self.tolerance
        return self.measured >= self.tolerance

    def cells(self) -> tuple[str, ...]:
        """The row's cells, as text."""
        sign = "<=" if self.bound is Bound.AT_MOST else ">="
        unit = f" {self.unit}" if self.unit else ""
        measured = f"{_number(self.measured)}{unit}"
        result = "ok" if self.passed else "FAIL"
        return self.check, measured, f"{sign} {_number(self.tolerance)}", result, self.worst


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of a bundle.

    Attributes:
        facts: what was compared with what.
        rows: the checks.
    """

    facts: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(row.passed for row in self.rows)

    @property
    def message(self) -> str:
        """The outcome in one line."""
        failed = [row.check for row in self.rows if not row.passed]
        if not failed:
            return f"all {len(self.rows)} checks passed"
        return f"{len(failed)} of {len(self.rows)} checks FAILED: {'; '.join(failed)}"

    def to_text(self) -> str:
        """The facts, an aligned table, and the outcome."""
        facts = [f"{name:<10} {value}" for name, value in self.facts.items() if isinstance(value, (str, int))]
        return "\n".join([*facts, "", *aligned([_HEADERS, *(row.cells() for row in self.rows)]), "", self.message])

    def to_json(self) -> str:
        """The same as JSON; a value that is not a finite number is null."""
        rows = [
            {
                "check": row.check,
                "measured": row.measured if math.isfinite(row.measured) else None,
                "tolerance": row.tolerance,
                "bound": str(row.bound),
                "unit": row.unit,
                "passed": row.passed,
                "worst": row.worst,
            }
            for row in self.rows
        ]
        content = {"format_version": FORMAT_VERSION, "passed": self.passed, **self.facts, "rows": rows}
        return json.dumps(content, indent=2, ensure_ascii=False)


def _number(value: float) -> str:
    return f"{value:.3g}"
