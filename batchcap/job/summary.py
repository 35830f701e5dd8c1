"""Owns `summary.json`: what a run did and how the job stands, written at every exit."""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from batchcap.core.errors import ExitCode
from batchcap.core.row_counts import RowCounts

NO_STAGE = "none"

SUMMARY_FORMAT_VERSION = 1


class JobState(StrEnum):
    """How a run ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"  # --max-runtime, SIGTERM or SIGHUP, with work left
    INTERRUPTED = "interrupted"  # Ctrl-C
    FAILED = "failed"  # an error that is not about one image


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """What this run did, from its first to its last row.

    Attributes:
        rows: rows finished in this run.
        new_tokens: tokens written in this run.
        elapsed_s: from the start of the command to the summary.
        working_s: from the first row handed out to the last one finished: model loading is not in it.
        stage_busy_s: seconds of work by stage, summed over its workers.
        peak_memory_mib: most memory of all processes together, shared pages counted once.
        duplicates: rows of this run whose image had been captioned as another row.
        images: images captioned in this run: rows without duplicates, failures, and rows that kept a caption.
    """

    rows: int
    new_tokens: int
    elapsed_s: float
    working_s: float
    stage_busy_s: dict[str, float]
    peak_memory_mib: float
    duplicates: int = 0
    images: int = 0

    @property
    def images_per_min(self) -> float:
        """Images captioned a minute while working: the one definition of this rate."""
        return 60 * self.images / self.working_s if self.working_s > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second while working."""
        return self.new_tokens / self.working_s if self.working_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the two rates included, rounded to what was measured."""
        return {
            "rows": self.rows,
            "images": self.images,
            "twins": self.duplicates,
            "new_tokens": self.new_tokens,
            "images_per_min": round(self.images_per_min, 2),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "elapsed_s": round(self.elapsed_s, 2),
            "working_s": round(self.working_s, 2),
            "stage_busy_s": {stage: round(seconds, 2) for stage, seconds in self.stage_busy_s.items()},
            "peak_memory_mib": round(self.peak_memory_mib, 1),
        }


def exit_code_of(counts: RowCounts, max_error_rate: float) -> ExitCode:
    """The exit code of a complete job."""
    is_nothing = bool(counts.failed) and not counts.ok
    return ExitCode.TOO_MANY_FAILURES if is_nothing or counts.error_rate > max_error_rate else ExitCode.COMPLETE


def now_iso() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def last_success_of(summary: dict[str, Any] | None) -> str | None:
    """The end of the last run with exit code 0 as ISO 8601, by the content of `summary.json`; None: none is known."""
    if summary is None:
        return None
    found = summary.get("last_success_at")
    if found is None and summary.get("exit_code") == 0:  # of an earlier batchcap, or of `merge`
        found = summary.get("ended_at")
    return found if timestamp_of(found) is not None else None


def timestamp_of(time: object) -> float | None:
    """Seconds since 1970 of a time of `summary.json`; None where it is none."""
    try:
        return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else None
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Summary:
    """How the job stands after a run.

    `total_rows` is None where the run ended before it knew how the job stands; then all counts are null. `parts_left`
    counts the part files still to be written or replaced, `ended_at` is the end of the run as ISO 8601.
    `last_success_at` is the end of the last run with exit code 0, also of an earlier one.
    `skipped_inputs`: files of the inputs that are images of types that can't be read, by suffix.
    """

    state: JobState
    exit_code: ExitCode
    message: str
    total_rows: int | None
    counts: RowCounts
    run: RunMetrics | None
    bundle: dict[str, str] | None
    limited_by: "Bottleneck | None" = None
    skipped_inputs: dict[str, int] = field(default_factory=dict)
    parts_left: int | None = None
    ended_at: str = field(default_factory=now_iso)
    last_success_at: str | None = None

    def after(self, before: dict[str, Any] | None) -> "Summary":
        """The same, with the last success in it.

        Args:
            before: the content of `summary.json` of the run before; None: there was none.
        """
        success = self.ended_at if self.exit_code is ExitCode.COMPLETE else last_success_of(before)
        return replace(self, last_success_at=success)

    def to_json(self) -> str:
        """The text of `summary.json`."""
        counted = self.counts.to_dict() if self.total_rows is not None else dict.fromkeys(RowCounts().to_dict())
        content = {
            "format_version": SUMMARY_FORMAT_VERSION,
            "state": self.state,
            "exit_code": int(self.exit_code),
            "message": self.message,
            "ended_at": self.ended_at,
            "last_success_at": self.last_success_at,
            "rows": self.total_rows,
            "done": counted.pop("rows"),
            "remaining": None if self.total_rows is None else self.total_rows - self.counts.rows,
            "parts_left": self.parts_left,
            **counted,
            "skipped_inputs": self.skipped_inputs,
            "run": self._run_to_dict(),
            "bundle": self.bundle,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def _run_to_dict(self) -> dict[str, Any] | None:
        if self.run is None:
            return None
        return {**self.run.to_dict(), "limited_by": self.limited_by.to_dict() if self.limited_by else None}


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The stage that was at work for most of the time.

    Attributes:
        stage: `read`, `vision`, `prefill`, `decode`, `store`, or `none` where all of them waited for something else.
        busy_share: of the working time, for the busiest of the processes that have this stage.
        advice: what to change, for a person.
    """

    stage: str
    busy_share: float
    advice: str

    def to_text(self) -> str:
        """One line for a person."""
        if self.stage == NO_STAGE:
            return f"not limited by a stage: {self.advice}"
        return f"limited by {self.stage}, busy {self.busy_share:.0%} of the time; to go faster: {self.advice}"

    def to_dict(self) -> dict[str, str | float]:
        """Plain JSON types."""
        return {"stage": self.stage, "busy_share": round(self.busy_share, 2), "advice": self.advice}
