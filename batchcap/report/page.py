"""Owns `report.html`: images with their captions on one page without scripts, for people who would rather look."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchcap import __version__
from batchcap.config import VisionConfig
from batchcap.core.atomic import write_atomic
from batchcap.core.errors import StorageError, UsageError
from batchcap.core.records import CaptionRow, ImageRow, Shard, Status
from batchcap.core.text import harmless
from batchcap.job.plan import Plan
from batchcap.report.status import JobStatus, read_status
from batchcap.report.thumbnails import ThumbnailMaker
from batchcap.store.folder import JobFolder
from batchcap.store.job_file import begun_configuration, input_config
from batchcap.store.journal import Journal
from batchcap.store.parts import well_rows
from batchcap.store.shard_state import finished_rows, shard_state_of

TEMPLATE = "page.html.jinja"
PLOT_WIDTH, PLOT_HEIGHT = 640, 120
MAX_POINTS = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What one prompt gave; `name` is the prompt's."""

    name: str
    text: str
    thinking: str | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Card:
    """An image and what was said of it, or why nothing was; `is_ok` where all of it looks as it should."""

    id: str
    image: str | None
    answers: list[Answer]
    failure: str | None
    facts: str
    is_ok: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """Images a minute over the time of all runs, as the points of an SVG polyline."""

    points: str
    most: float
    hours: float


def write_page(output: Path, to: Path | None = None, images: int = 200) -> Path:
    """Write the page of a job; half of its images, at most, are those to be looked at first.

    Args:
        output: the job folder; a run may be at work on it.
        to: the page; None: `report.html` in the folder of the job's state.
        images: how many are shown.

    Returns:
        Where the page is.

    Raises:
        UsageError: the folder is no job folder, the job has no plan yet, or there is no such place.
        StorageError: a part can't be read, or the page can't be written.
    """
    status = read_status(output)
    folder = JobFolder.open_existing(output)
    target = to or folder.report_path
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UsageError(f"can't write the page {target}: with --to, name a file in an existing folder")
    configuration = begun_configuration(folder)
    cards = Journal.look_into(folder.journal_path, lambda journal: list(_cards(folder, journal, configuration, images)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("batchcap.report", "."),
        autoescape=True,  # names and captions are anybody's
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template(TEMPLATE).render(
        status=status,
        version=__version__,
        facts=_facts(status, configuration),
        to_look_at=[card for card in cards if not card.is_ok],
        well=[card for card in cards if card.is_ok],
        plot=_plot(folder.stats_path),
        plot_width=PLOT_WIDTH,
        plot_height=PLOT_HEIGHT,
    )
    try:
        write_atomic(target, harmless(text).encode(errors="backslashreplace"))
    except StorageError as error:
        raise StorageError(
            f"can't write the page {target} ({error.__cause__}): name another place with --to"
        ) from error
    return target


def _cards(folder: JobFolder, journal: Journal, configuration: dict[str, Any], most: int) -> Iterator[Card]:
    plan = Plan(journal, input_config(configuration))
    limit = configuration["vision"].get("max_image_pixels", VisionConfig().max_image_pixels)
    prompt = configuration["generation"]["prompt"]
    names = [""] if isinstance(prompt, str) else list(prompt)
    chosen = _choose(folder, journal, most)
    with ThumbnailMaker(limit) as thumbnails:
        for shard in journal.shards():
            wanted = {index for index in chosen if shard.first_row <= index < shard.first_row + shard.rows}
            if wanted:
                rows = _rows(folder, journal, shard)
                shown = {row.index: thumbnails.make(row) for row in _images(plan, shard, wanted)}
                for index in sorted(wanted & rows.keys()):
                    yield _card(rows[index], names, shown.get(index))


def _rows(folder: JobFolder, journal: Journal, shard: Shard) -> dict[int, CaptionRow]:
    has_part = shard_state_of(folder, journal, shard).has_part
    return dict(finished_rows(folder, journal, shard, has_part=has_part))


def _choose(folder: JobFolder, journal: Journal, most: int) -> set[int]:
    """Row indexes: half failed or odd ones, or as there is room, and well ones from all over the job."""
    odd, well = list[int](), list[int]()
    for shard in journal.shards():
        state = shard_state_of(folder, journal, shard)
        if state.is_done:
            found: Iterable[tuple[int, bool]] = enumerate(well_rows(folder.part_path(shard.seq)), shard.first_row)
        else:
            ended = finished_rows(folder, journal, shard, has_part=state.has_part)
            found = ((index, row.is_ok) for index, row in ended)
        for index, is_ok in found:
            (well if is_ok else odd).append(index)
    odd = odd[: max(most // 2, most - len(well))]
    return {*odd, *_spread(well, most - len(odd))}


def _spread(indexes: list[int], most: int) -> list[int]:
    """At most so many of them, evenly."""
    if len(indexes) <= most:
        return indexes
    return [indexes[int(index)] for index in np.linspace(0, len(indexes) - 1, most)] if most else []


def _images(plan: Plan, shard: Shard, wanted: set[int]) -> Iterator[ImageRow]:
    """Where the images of some rows of a shard are, or themselves; what is left of them where an input is gone."""
    with suppress(UsageError):
        yield from plan.shard_rows(shard, wanted)


def _card(row: CaptionRow, names: list[str], image: str | None) -> Card:
    failure = None
    answers = list[Answer]()
    if row.status is Status.FAILED:
        failure = f"{row.error_kind}: {row.error_message}"
    else:
        answers = [
            Answer(name, one.caption or "", one.thinking, str(one.verdict))
            for name, one in zip(names, row.answers, strict=True)
        ]
    facts = [
        f"{row.width} x {row.height} pixels" if row.width else "",
        f"{row.visual_tokens} visual tokens" if row.visual_tokens else "",
        f"tried {row.attempts} times" if row.attempts > 1 else "",
    ]
    return Card(row.id, image, answers, failure, ", ".join(filter(None, facts)), row.is_ok)


def _facts(status: JobStatus, configuration: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what stands at the page's head."""
    last, counts, prompt = status.last_run or {}, status.counts, configuration["generation"]["prompt"]
    bundle, run = last.get("bundle") or {}, last.get("run") or {}
    asked = [("prompt", prompt)] if isinstance(prompt, str) else [(f"prompt {name}", prompt[name]) for name in prompt]
    facts = [
        ("rows", f"{counts.rows:,} of {status.total_rows:,} done"),
        ("captions", f"{counts.ok:,}" + _counts(counts.verdicts)),
        ("failed", f"{counts.failed:,}" + _counts(counts.error_kinds)),
        ("model", f"{bundle.get('source', '')} {bundle.get('precision', '')}".strip()),
        *asked,
        ("last run", f"{run['images_per_min']:.1f} images/min, {run['tokens_per_s']:.0f} tokens/s" if run else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _counts(kinds: dict[str, int]) -> str:
    return f" ({', '.join(f'{name} {count:,}' for name, count in sorted(kinds.items()))})" if kinds else ""


def _plot(path: Path) -> Plot | None:
    """The rate of all runs, one after the other; None without two samples of a run."""
    try:
        table = pq.read_table(path)
        if "images" in table.column_names:  # null in samples of an earlier batchcap, which counted rows only
            images = pc.coalesce(table["images"], table["rows"])
            table = table.drop_columns("rows").append_column("rows", images)
        run, elapsed, rows = (table[name].to_numpy().astype(np.float64) for name in ("run", "elapsed_s", "rows"))
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    inside = run[1:] == run[:-1]
    seconds = np.diff(elapsed)[inside]
    if not seconds.sum() > 0:
        return None
    ends = np.cumsum(seconds)
    # The same stretches of time for all points: a sample now and then must not look like a slow job.
    edges = np.linspace(0, ends[-1], min(MAX_POINTS, len(ends)) + 1)
    done = np.interp(edges, np.append(0, ends), np.append(0, np.cumsum(np.diff(rows)[inside])))
    rates = 60 * np.diff(done) / np.diff(edges)
    most = max(float(rates.max()), 1e-9)
    across = np.linspace(0, PLOT_WIDTH, len(rates))
    points = " ".join(f"{x:.1f},{PLOT_HEIGHT * (1 - y / most):.1f}" for x, y in zip(across, rates, strict=True))
    return Plot(points, most, float(ends[-1]) / 3600)
