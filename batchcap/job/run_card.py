"""Owns `RUN.md`: how a job stands after a run, as a page in Markdown that people read without batchcap.

Names, messages, prompts and settings are anybody's: they stand there as code, in lines that begin with our words.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batchcap import __version__
from batchcap.config import JobConfig
from batchcap.core.atomic import write_atomic
from batchcap.core.records import CaptionRow
from batchcap.core.setting import all_values, fields_of
from batchcap.core.text import format_duration, markdown_code, printable_name
from batchcap.job.failures import sample_of
from batchcap.job.summary import JobState, Summary
from batchcap.store.folder import JobFolder

# Inputs that are named; the others are counted.
MAX_INPUTS = 20
# Said elsewhere on the page, or of no use to whoever reads it.
_NOT_SETTINGS = frozenset({"inputs", "output", "model", "prompt"})


@dataclass(frozen=True, slots=True)
class RunCard:
    """What the page is made of.

    Attributes:
        folder: of the job.
        config: the job, with its settings decided where the run came that far.
        summary: of the run.
        samples: a failed row of this run for a kind of failure; others are looked for in the parts.
    """

    folder: JobFolder
    config: JobConfig
    summary: Summary
    samples: Mapping[str, CaptionRow]

    def to_text(self) -> str:
        """The page."""
        name = printable_name(self.folder.path.absolute().name)
        pieces = [
            [f"# Captions in {markdown_code(name)}"],
            self._end(),
            ["## Rows", "", *self._rows()],
            ["## Failures", "", *self._failures()] if self.summary.counts.error_kinds else [],
            ["## Speed of this run", "", *self._speed()] if self.summary.run is not None else [],
            ["## Job", "", *self._job()],
            ["## Settings", "", *self._settings()],
            ["## To go on", "", *self._resume()],
        ]
        return "\n\n".join("\n".join(lines) for lines in pieces if lines) + "\n"

    def _end(self) -> list[str]:
        ended = self.summary
        lines = [
            f"- State: **{ended.state}**, exit code {int(ended.exit_code)}",
            f"- Message: {markdown_code(ended.message, 1000)}",
            f"- Ended at: {ended.ended_at}",
            f"- Last success at: {ended.last_success_at or 'none yet'}",
        ]
        return [*lines, f"- Version of batchcap: {__version__}"]

    def _rows(self) -> list[str]:
        counts, total = self.summary.counts, self.summary.total_rows
        if total is None:
            return ["The run ended before its rows were counted."]
        lines = [
            f"- Rows of the job: {total:,}",
            f"- Done: {counts.rows:,}, left: {total - counts.rows:,}",
            f"- With a caption: {counts.ok:,}",
            f"- Failed: {counts.failed:,} ({counts.error_rate:.2%} of those done)",
            f"- Verdicts of the captions: {_by_name(counts.verdicts)}",
            f"- Tokens of all captions: {counts.new_tokens:,}",
        ]
        if skipped := self.summary.skipped_inputs:
            shown = ", ".join(f"{markdown_code(suffix)} {count:,}" for suffix, count in sorted(skipped.items()))
            lines.append(f"- Files of the inputs that can't be read: {shown}")
        return lines

    def _failures(self) -> list[str]:
        lines = []
        for kind, count in self.summary.counts.error_kinds.most_common():
            sample = self.samples.get(kind) or sample_of(self.folder, kind)
            such = ""
            if sample is not None:
                such = f", such as {markdown_code(sample.id)}: {markdown_code(sample.error_message or '')}"
            lines.append(f"- **{kind}**: {count:,}{such}")
        return lines

    def _speed(self) -> list[str]:
        run, limited_by = self.summary.run, self.summary.limited_by
        if run is None:
            return []
        lines = [
            f"- Images captioned: {run.images:,} in {format_duration(run.elapsed_s)}",
            f"- Rate after loading: {run.images_per_min:.1f} images/min, {run.tokens_per_s:.1f} tokens/s",
            f"- Duplicates: {run.duplicates:,}",
            f"- Most memory: {run.peak_memory_mib:,.0f} MiB",
        ]
        return lines if limited_by is None else [*lines, f"- Bottleneck: {limited_by.to_text()}"]

    def _job(self) -> Iterator[str]:
        bundle = self.summary.bundle or {}
        yield f"- Job folder: {markdown_code(_shown(self.config.output))}"
        yield f"- Model: {markdown_code(_shown(self.config.model or ''))}"
        for name, value in bundle.items():
            yield f"- Model's {name}: {markdown_code(value)}"
        given = self.config.input.inputs
        for one in given[:MAX_INPUTS]:
            yield f"- Input: {markdown_code(_shown(one))}"
        if len(given) > MAX_INPUTS:
            yield f"- and {len(given) - MAX_INPUTS:,} more inputs"
        for prompt in self.config.generation.prompts:
            yield f"- Prompt{f' {prompt.name}' if prompt.name else ''}: {markdown_code(prompt.text, 2000)}"

    def _settings(self) -> Iterator[str]:
        told = {one.setting.key for one in fields_of(self.config.operations)}
        for setting, value in all_values(self.config):
            if setting.key not in _NOT_SETTINGS | told:
                shown = ", ".join(map(_shown, value)) if isinstance(value, tuple) else _shown(value)
                yield f"- {setting.key}: {markdown_code(shown)}"

    def _resume(self) -> Iterator[str]:
        ended = self.summary
        if ended.state is JobState.COMPLETE:
            yield "The job is complete. The same command captions what has been added to its inputs since."
        else:
            yield "Run the same command, or the same job file, again: what is finished is not done twice."
        if ended.counts.failed:
            yield ""
            yield 'With `--retry failed` it captions the failed rows again, too (in a job file: `retry = ["failed"]`).'


def _by_name(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "none"


def _shown(value: object) -> str:
    return "" if value is None else printable_name(str(value))


def write_run_card(card: RunCard) -> None:
    """Write the page beside the summary.

    Raises:
        StorageError: it can't be written.
    """
    write_atomic(card.folder.run_card_path, card.to_text().encode())
