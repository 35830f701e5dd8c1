"""Owns `batchcap status`: how far a job is, read from its folder without disturbing it."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from batchcap.errors import UsageError
from batchcap.report.progress import format_duration
from batchcap.report.summary import Tally
from batchcap.standing import standing_of
from batchcap.store.fingerprint import begun_model
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import read_holder
from batchcap.store.parts import column_name, prompt_names
from batchcap.store.stats import recent_rate_per_s

CAPTION_WIDTH = 90


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job stands. `holder` names the process at work on it; rates and ETA are of the last minutes.

    `model` is as it was named when the job was begun; None where that can't be read.
    """

    output: str
    total_rows: int
    tally: Tally
    parts: int
    holder: str | None
    images_per_min: float | None
    last_run: dict[str, Any] | None
    model: str | None

    @property
    def remaining(self) -> int:
        """Rows without an outcome."""
        return self.total_rows - self.tally.rows

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the recent rate, while the job runs."""
        if self.holder is None or not self.images_per_min:
            return None
        return 60 * self.remaining / self.images_per_min

    def to_json(self) -> str:
        """One JSON object."""
        content = {
            "output": self.output,
            "model": self.model,
            "state": self.state,
            "rows": self.total_rows,
            "done": self.tally.rows,
            "remaining": self.remaining,
            "ok": self.tally.ok,
            "failed": self.tally.failed,
            "verdicts": dict(self.tally.verdicts),
            "error_kinds": dict(self.tally.error_kinds),
            "parts": self.parts,
            "holder": self.holder,
            "images_per_min": self.images_per_min,
            "eta_s": self.eta_s,
            "last_run": self.last_run,
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    @property
    def state(self) -> str:
        """One word: running, complete, or what the last run ended as."""
        if self.holder is not None:
            return "running"
        if self.remaining == 0:
            return "complete"
        return str(self.last_run["state"]) if self.last_run else "stopped"

    def to_text(self) -> str:
        """Lines for a person."""
        share = 100 * self.tally.rows / self.total_rows if self.total_rows else 100.0
        lines = [
            f"{self.output}: {self.state}",
            f"  rows      {self.tally.rows:,} of {self.total_rows:,} done ({share:.1f} %), {self.remaining:,} left",
            f"  captions  {self.tally.ok:,} ok{_by_kind(self.tally.verdicts)}",
            f"  failed    {self.tally.failed:,}{_by_kind(self.tally.error_kinds)}",
            f"  parts     {self.parts:,}",
        ]
        if self.model is not None:
            lines.append(f"  model     {self.model}")
        if self.holder is not None:
            lines.append(f"  at work   {self.holder}")
        if self.images_per_min:
            left = f", {format_duration(self.eta_s)} left" if self.eta_s is not None else ""
            lines.append(f"  rate      {self.images_per_min:.1f} images/min{left}")
        elif self.last_run and self.last_run.get("run"):
            lines.append(f"  last run  {self.last_run['run']['images_per_min']:.1f} images/min")
        if self.holder is None and self.remaining:
            lines.append("  Run the same command again to go on.")
        return "\n".join(lines)


def _by_kind(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{kind} {count:,}' for kind, count in counts.most_common())})" if counts else ""


def read_status(output: Path) -> JobStatus:
    """Read a job folder.

    Raises:
        UsageError: the folder is no job folder, or the job has no plan yet.
    """
    folder = JobFolder.open_existing(output)
    holder = read_holder(folder)
    if not folder.journal_path.exists():
        raise UsageError(f"no run in {output} has come as far as its first row: start it again")
    with closing(Journal.open_to_read(folder.journal_path)) as journal:
        shards = journal.shards()
        tally = Tally()
        for shard in shards:
            tally.add(standing_of(folder, journal, shard).tally)
    summary = _read_json(folder.summary_path)
    rate = recent_rate_per_s(folder.stats_path) if holder else None
    return JobStatus(
        output=str(output),
        total_rows=sum(shard.rows for shard in shards),
        tally=tally,
        parts=len(folder.part_paths()),
        holder=str(holder) if holder else None,
        images_per_min=60 * rate if rate else None,
        last_run=summary,
        model=begun_model(output),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def first_captions(output: Path, count: int) -> str:
    """The captions of a job's first pictures as a table of picture and caption; of several prompts a line for each."""
    folder = JobFolder.open_existing(output)
    rows = [line for lines in islice(_captions(folder), count) for line in lines]
    if not rows:
        return "no part file yet"
    width = min(44, max(len(name) for name, _text in rows))
    return "\n".join(f"{_cut(name, width):<{width}}  {_cut(text, CAPTION_WIDTH)}" for name, text in rows)


def _captions(folder: JobFolder) -> Iterator[list[tuple[str, str]]]:
    """The lines of each row, as picture and caption."""
    for path in folder.part_paths():
        try:
            columns = {name: column_name("caption", name) for name in prompt_names(path)}
            table = pq.read_table(path, columns=["id", *columns.values(), "error_kind"])
        except (OSError, ValueError) as error:
            raise UsageError(
                f"can't read {path} ({error}): delete it, and the job's own command captions its rows again"
            ) from None
        for row in table.to_pylist():
            texts = [f"{name}: {row[column]}" if name else str(row[column]) for name, column in columns.items()]
            if row["error_kind"] is not None:
                texts = [f"[failed: {row['error_kind']}]"]
            yield [("" if place else printable(row["id"]), printable(text)) for place, text in enumerate(texts)]


def printable(text: str) -> str:
    """The text on one line, without characters that steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
