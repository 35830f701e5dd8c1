"""Owns which rows of the inputs are rows of a job: those of a condition, of a sample, of one stretch of several.

In this order, and once: what was chosen stays chosen. Nothing is held for each row but the places of a sample.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from batchcap.config import InputConfig
from batchcap.inputs.reader import Reader
from batchcap.job.condition_rows import matching_rows
from batchcap.store.chosen_rows import ChosenRows, PlannedSource, Stretch
from batchcap.store.plan_tables import ChangedSource

log = logging.getLogger(__name__)

# Rows ranked together; for a larger sample as many as it has.
_RANKED_ROWS = 1 << 16
_WORD = (1 << 64) - 1


def choose_rows(chosen: ChosenRows, first: int, readers: Mapping[str, Reader], config: InputConfig) -> None:
    """Choose among the rows of new sources.

    Args:
        chosen: where they are kept.
        first: number of the first new source.
        readers: of each kind.
        config: what is chosen.

    Raises:
        UsageError: the condition can't be used, or a source can't be read.
    """
    if config.where is None:
        total, is_aside = chosen.rows_from(first), False
    else:
        total, is_aside = chosen.set_aside(matching_rows(chosen.sources(first), readers, config.where)), True
        level = logging.INFO if total else logging.WARNING
        log.log(level, "%d of %d rows match --where", total, chosen.rows_from(first))
    stretches = chosen.aside() if is_aside else (Stretch(one.number, 0, one.rows) for one in chosen.sources(first))
    if config.sample and config.sample < total:
        stretches = _only(stretches, drawn(total, config.sample, config.sample_seed))
        total = config.sample
    number, count = config.shard_of
    chosen.choose(_between(stretches, total * (number - 1) // count, total * number // count))


def choose_later_rows(
    chosen: ChosenRows, grown: Iterable[ChangedSource], readers: Mapping[str, Reader], where: str
) -> None:
    """Choose among the rows that known sources have got since; raises as `choose_rows`."""
    for one in grown:
        if one.rows > one.rows_before:
            source = PlannedSource(one.number, "", one.path, one.kind, one.rows)
            chosen.choose(_later(matching_rows([source], readers, where), one.rows_before))


def _later(stretches: Iterable[Stretch], before: int) -> Iterator[Stretch]:
    """The rows that a source did not have before."""
    for source, start, rows in stretches:
        if start + rows > before:
            first = max(start, before)
            yield Stretch(source, first, start + rows - first)


def drawn(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """The places of a sample, rising: those of the smallest ranks, and a rank depends on seed and place alone.

    Args:
        rows: how many there are to draw from.
        count: how many are drawn, fewer than there are.
        seed: another one draws others.
    """
    kept = np.zeros(0, np.int64)
    step = max(count, _RANKED_ROWS)
    for first in range(0, rows, step):
        kept = np.concatenate([kept, np.arange(first, min(rows, first + step))])
        if len(kept) > count:
            kept = kept[np.argpartition(_ranks(kept, seed), count - 1)[:count]]
    kept.sort()
    return kept


def _ranks(places: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A number for each place that looks random, no two the same: SplitMix64, begun at a place of the seed's."""
    ranks = places.astype(np.uint64)
    ranks += np.uint64(_mixed(seed))
    ranks *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        ranks ^= ranks >> np.uint64(shift)
        ranks *= np.uint64(factor)
    ranks ^= ranks >> np.uint64(31)
    return ranks


def _mixed(seed: int) -> int:
    """A seed far from those of its neighbours, whose samples would be shifted ones."""
    word = (seed + 1) * 0xD1342543DE82EF95 & _WORD
    return (word ^ word >> 32) * 0xDABA0B6EB09322E3 & _WORD


def _only(stretches: Iterable[Stretch], places: NDArray[np.int64]) -> Iterator[Stretch]:
    """The rows at some places, counted over all stretches; a stretch for those that follow each other."""
    first, low = 0, 0
    for source, start, rows in stretches:
        high = low + int(np.searchsorted(places[low:], first + rows))
        if high > low:
            inside = places[low:high] - first
            runs = np.flatnonzero(np.diff(inside, prepend=inside[0] - 2) != 1)
            ends = np.append(runs[1:], len(inside))
            for run, end in zip(runs.tolist(), ends.tolist(), strict=True):
                yield Stretch(source, start + int(inside[run]), end - run)
        first, low = first + rows, high


def _between(stretches: Iterable[Stretch], low: int, high: int) -> Iterator[Stretch]:
    """The rows from one place to another."""
    first = 0
    for source, start, rows in stretches:
        begin, end = max(low, first), min(high, first + rows)
        if begin < end:
            yield Stretch(source, start + begin - first, end - begin)
        first += rows
        if first >= high:
            return
