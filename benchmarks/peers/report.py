"""Owns the figures of a benchmark: rates, ratios of pairs, share of the ceiling, and how they are written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from peers.protocol import STAGES, Outcome

CEILINGS = ("int8_gops", "bf16_gops", "fp32_gops")


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant in one round.

    Attributes:
        round: from 0.
        contestant: its name.
        outcome: by its own account.
        start_up_s: the rest of the process's time: loading, warm-up, end.
        peak_memory_mib: most memory of all its processes together, pages they share counted once.
        load_before: load average over one minute before it started.
    """

    round: int
    contestant: str
    outcome: Outcome
    start_up_s: float
    peak_memory_mib: float
    load_before: float

    @property
    def images_per_min(self) -> float:
        """Images captioned a minute."""
        return self.outcome.images / self.outcome.wall_s * 60

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second."""
        return self.outcome.new_tokens / self.outcome.wall_s


@dataclass(frozen=True, slots=True)
class Results:
    """All that a benchmark found.

    Attributes:
        machine: CPU, cores, versions, date, load average.
        task: what everybody did, in figures.
        ops_per_image: multiplications and additions of the mean image.
        ceilings: measured rates, the best of all rounds.
        runs: of all rounds.
        missing: reason by contestant that did not take part.
    """

    machine: dict[str, Any]
    task: dict[str, Any]
    ops_per_image: float
    ceilings: dict[str, float]
    runs: list[Run]
    missing: dict[str, str]

    @property
    def contestants(self) -> list[str]:
        """Those that ran, in order of their first run."""
        return list(dict.fromkeys(run.contestant for run in self.runs))

    def of(self, contestant: str) -> list[Run]:
        """Its runs."""
        return [run for run in self.runs if run.contestant == contestant]

    def ratio(self, contestant: str, other: str) -> float | None:
        """How many times as many images a minute as the other: median over the rounds of both; None without one."""
        speeds = {run.round: run.images_per_min for run in self.of(other)}
        pairs = [run.images_per_min / speeds[run.round] for run in self.of(contestant) if run.round in speeds]
        return median(pairs) if pairs else None

    def ceiling_share(self, contestant: str) -> float:
        """Arithmetic a second, as a share of the fastest product measured, whatever its kind."""
        images_per_s = median(run.images_per_min for run in self.of(contestant)) / 60
        return self.ops_per_image * images_per_s / 1e9 / max(self.ceilings.get(name, 0.0) for name in CEILINGS)

    def as_json(self) -> dict[str, Any]:
        """For the results file: everything measured, and the summary of the tables."""
        values = asdict(self)
        values["summary"] = {
            name: {
                "images_per_min": round(median(run.images_per_min for run in self.of(name)), 2),
                "tokens_per_s": round(median(run.tokens_per_s for run in self.of(name)), 2),
                "ceiling_share": round(self.ceiling_share(name), 3),
                "ratio_to": {
                    other: round(ratio, 3)
                    for other in self.contestants
                    if other != name and (ratio := self.ratio(name, other)) is not None
                },
            }
            for name in self.contestants
        }
        return values


def tables(results: Results) -> str:
    """Figures, ratios, and who is missing, as Markdown."""
    names = results.contestants
    head = ["", "images/min", "tokens/s", *(f"{stage} s" for stage in STAGES), "start-up s", "peak GiB", "ceiling"]
    parts = [_table([*head, "precision"], [_figures(results, name) for name in names])]
    if len(names) > 1:
        rows = [[name, *(_ratio(results.ratio(name, other)) for other in names)] for name in names]
        parts.append("Images a minute, how many times as many as the other (median of pairs of one round):\n")
        parts.append(_table(["", *names], rows))
    parts += _notes(results)
    parts += [f"missing: {name}: {reason}" for name, reason in results.missing.items()]
    return "\n".join(parts)


def _notes(results: Results) -> list[str]:
    """Who saw or wrote more or less than the first: their rates can't be compared as they stand."""
    tokens = {run.contestant: run.outcome for run in results.runs}
    means = {
        name: f"{each.visual_tokens / each.images:.0f} visual tokens and {each.new_tokens / each.images:.0f} new ones"
        for name, each in tokens.items()
    }
    first = next(iter(means), "")
    fewer = [
        f"note: {name} captioned {each.images} images of {tokens[first].images}"
        for name, each in tokens.items()
        if each.images != tokens[first].images
    ]
    return fewer + [
        f"note: an image of {name}: {mean}, of {first}: {means[first]}"
        for name, mean in means.items()
        if mean != means[first]
    ]


def _figures(results: Results, name: str) -> list[str]:
    runs = results.of(name)
    stages = [_stage_s(runs, stage) for stage in STAGES]
    return [
        name,
        f"{median(run.images_per_min for run in runs):.1f}",
        f"{median(run.tokens_per_s for run in runs):.1f}",
        *stages,
        f"{median(run.start_up_s for run in runs):.1f}",
        f"{max(run.peak_memory_mib for run in runs) / 1024:.2f}",
        f"{results.ceiling_share(name):.0%}",
        runs[0].outcome.precision,
    ]


def _stage_s(runs: Sequence[Run], stage: str) -> str:
    seconds = [run.outcome.stage_s[stage] for run in runs if stage in run.outcome.stage_s]
    return f"{median(seconds):.1f}" if seconds else "–"


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
