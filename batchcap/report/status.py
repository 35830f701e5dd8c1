"""Owns `batchcap status`: how far a job is, read from its folder without disturbing it."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from batchcap.core.errors import UsageError
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import format_duration
from batchcap.job.summary import JobState
from batchcap.store.fingerprint import begun_model
from batchcap.store.folder import JobFolder
from batchcap.store.job_file import require_known_format
from batchcap.store.lock import read_last_run
from batchcap.store.parts import column_name, prompt_names
from batchcap.store.shard_state import look_at_shards, unknown_part
from batchcap.store.stats import recent_rate_per_s

CAPTION_WIDTH = 90


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job stands.

    Attributes:
        output: the job folder.
        total_rows: of the plan.
        counts: of the rows that have ended.
        parts: part files that are there and stay as they are.
        parts_left: part files that are still to be written or, after a retry, replaced.
        holder: the process at work on the job.
        killed: the process that was the last one at work, where it ended without a word.
        images_per_min: images captioned a minute, copies apart, in the last minutes of the run at work.
        rows_per_min: rows finished a minute, copies and failures among them, in these minutes.
        last_run: the summary of the last run that ended in good order.
        model: as it was named when the job was begun; None where that can't be read.
    """

    output: str
    total_rows: int
    counts: RowCounts
    parts: int
    parts_left: int
    holder: str | None
    killed: str | None
    images_per_min: float | None
    rows_per_min: float | None
    last_run: dict[str, Any] | None
    model: str | None

    @property
    def remaining(self) -> int:
        """Rows without an outcome."""
        return self.total_rows - self.counts.rows

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the recent rate, while the job runs."""
        if self.holder is None or not self.rows_per_min:
            return None
        return 60 * self.remaining / self.rows_per_min

    def to_json(self) -> str:
        """One JSON object."""
        content = {
            "output": self.output,
            "model": self.model,
            "state": self.state,
            "rows": self.total_rows,
            "done": self.counts.rows,
            "remaining": self.remaining,
            "ok": self.counts.ok,
            "failed": self.counts.failed,
            "verdicts": dict(self.counts.verdicts),
            "error_kinds": dict(self.counts.error_kinds),
            "parts": self.parts,
            "parts_left": self.parts_left,
            "holder": self.holder,
            "images_per_min": self.images_per_min,
            "eta_s": self.eta_s,
            "last_run": self.last_run,
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    @property
    def state(self) -> str:
        """One word: running, complete, killed, or what the last run ended as."""
        if self.holder is not None:
            return "running"
        if not self.remaining and not self.parts_left:
            return str(JobState.COMPLETE)
        if self.killed is not None:
            return "killed"
        state = (self.last_run or {}).get("state", JobState.STOPPED)
        # Complete was then: rows have been added since, or a part has gone.
        return str(JobState.STOPPED if state == JobState.COMPLETE else state)

    def to_text(self) -> str:
        """Lines for a person."""
        share = 100 * self.counts.rows / self.total_rows if self.total_rows else 100.0
        lines = [
            f"{self.output}: {self.state}",
            f"  rows      {self.counts.rows:,} of {self.total_rows:,} done ({share:.1f} %), {self.remaining:,} left",
            f"  captions  {self.counts.ok:,} ok{_by_kind(self.counts.verdicts)}",
            f"  failed    {self.counts.failed:,}{_by_kind(self.counts.error_kinds)}",
            f"  parts     {self.parts:,} of {self.parts + self.parts_left:,} written",
        ]
        if self.model is not None:
            lines.append(f"  model     {self.model}")
        if self.holder is not None:
            lines.append(f"  at work   {self.holder}")
        if self.images_per_min is not None:
            left = f", {format_duration(self.eta_s)} left" if self.eta_s is not None else ""
            lines.append(f"  rate      {self.images_per_min:.1f} images/min{left}")
        elif self.last_run and self.last_run.get("run"):
            lines.append(f"  last run  {self.last_run['run']['images_per_min']:.1f} images/min")
        if self.state == "killed":
            lines.append(
                f"  killed    {self.killed}: by kill -9, lack of memory or a power cut. No finished row is lost."
            )
        if self.holder is None and (self.remaining or self.parts_left):
            lines.append("  Run the same command again to go on.")
        return "\n".join(lines)


def _by_kind(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{kind} {count:,}' for kind, count in counts.most_common())})" if counts else ""


def read_status(output: Path) -> JobStatus:
    """Read a job folder.

    Raises:
        UsageError: the folder is no job folder, a later batchcap made it, or its journal has no plan (yet).
    """
    folder = JobFolder.open_existing(output)
    require_known_format(folder)
    run = read_last_run(folder)
    states = look_at_shards(folder) if folder.journal_path.exists() else []
    if not states:
        if parts := folder.part_paths():
            raise unknown_part(folder, parts[0])
        raise UsageError(f"no run in {output} has reached its first row yet: run the same command again")
    counts = RowCounts()
    for state in states:
        counts.add(state.counts)
    images, rows = (recent_rate_per_s(folder.stats_path, one) if run.holder else None for one in ("images", "rows"))
    return JobStatus(
        output=str(output),
        total_rows=sum(state.shard.rows for state in states),
        counts=counts,
        parts=sum(state.is_done for state in states),
        parts_left=sum(not state.is_done for state in states),
        holder=str(run.holder) if run.holder else None,
        killed=str(run.killed) if run.killed else None,
        images_per_min=None if images is None else 60 * images,
        rows_per_min=None if rows is None else 60 * rows,
        last_run=run.summary,
        model=begun_model(output),
    )


def first_captions(output: Path, count: int) -> str:
    """The captions of a job's first images as a table of image and caption; of several prompts a line for each."""
    folder = JobFolder.open_existing(output)
    rows = [line for lines in islice(_captions(folder), count) for line in lines]
    if not rows:
        return "no part file yet"
    width = min(44, max(len(name) for name, _text in rows))
    return "\n".join(f"{_cut(name, width):<{width}}  {_cut(text, CAPTION_WIDTH)}" for name, text in rows)


def _captions(folder: JobFolder) -> Iterator[list[tuple[str, str]]]:
    """The lines of each row, as image and caption."""
    for path in folder.part_paths():
        try:
            columns = {name: column_name("caption", name) for name in prompt_names(path)}
            table = pq.read_table(path, columns=["id", *columns.values(), "error_kind"])
        except (OSError, ValueError) as error:
            raise UsageError(
                f"can't read {path} ({error}): delete it and run the job again, which captions its rows again"
            ) from None
        for row in table.to_pylist():
            texts = [f"{name}: {row[column]}" if name else str(row[column]) for name, column in columns.items()]
            if row["error_kind"] is not None:
                texts = [f"[failed: {row['error_kind']}]"]
            yield [("" if index else printable(row["id"]), printable(text)) for index, text in enumerate(texts)]


def printable(text: str) -> str:
    """The text on one line, without characters that steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
