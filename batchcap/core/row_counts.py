"""Owns how output rows are counted: by end, verdict and kind of failure."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from batchcap.core.records import CaptionRow, Status


@dataclass(slots=True)
class RowCounts:
    """Counts of output rows; those of parts add up to those of the job."""

    rows: int = 0
    ok: int = 0
    failed: int = 0
    new_tokens: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    error_kinds: Counter[str] = field(default_factory=Counter)

    def add_row(self, row: CaptionRow) -> None:
        """Count one output row."""
        self.rows += 1
        if row.status is Status.OK:
            self.ok += 1
            self.new_tokens += row.new_tokens_of_all
            self.verdicts.update(str(answer.verdict) for answer in row.answers)
        else:
            self.failed += 1
            self.error_kinds[str(row.error_kind)] += 1

    def add(self, other: "RowCounts") -> None:
        """Add the counts of other rows."""
        self.rows += other.rows
        self.ok += other.ok
        self.failed += other.failed
        self.new_tokens += other.new_tokens
        self.verdicts.update(other.verdicts)
        self.error_kinds.update(other.error_kinds)

    @property
    def error_rate(self) -> float:
        """Share of failed rows; 0 with no rows."""
        return self.failed / self.rows if self.rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "rows": self.rows,
            "ok": self.ok,
            "failed": self.failed,
            "new_tokens": self.new_tokens,
            "verdicts": dict(self.verdicts),
            "error_kinds": dict(self.error_kinds),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RowCounts":
        """The counts that `to_dict` gave."""
        return cls(
            rows=data["rows"],
            ok=data["ok"],
            failed=data["failed"],
            new_tokens=data["new_tokens"],
            verdicts=Counter(data["verdicts"]),
            error_kinds=Counter(data["error_kinds"]),
        )
