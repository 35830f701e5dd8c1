"""Owns which candidates are tried, in which order, and which of them wins. Measures nothing itself.

Coordinate descent from the defaults: one group of settings after the other, those first that gain most, each beginning
from the best so far. A candidate is given up as soon as it can't win.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from batchcap.config import VisionBackend, VisionDtype
from batchcap.engines.profiles import INT8_ENCODER, W8A8_SLOTS, Encoder, Settings

# Two runs of the same differ by this much on a quiet machine; less is no reason to leave the defaults.
MIN_GAIN = 1.03

Move = Callable[[Settings], Sequence[Settings]]


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides which candidates make sense.

    Attributes:
        cpus: hardware threads this process may use.
        cores: cores they belong to.
        torch: whether PyTorch is installed.
    """

    cpus: int
    cores: int
    torch: bool


@dataclass(slots=True)
class Trial:
    """A candidate.

    Attributes:
        settings: the candidate.
        row_s: seconds an image, each time it was measured.
        note: why it has no time.
        below: images a minute that it did not reach when it was given up.
    """

    settings: Settings
    row_s: list[float] = field(default_factory=list)
    note: str = ""
    below: float = 0.0

    @property
    def images_per_min(self) -> float:
        """By the median of its times; 0 without one."""
        return 60 / self.typical_row_s if self.row_s else 0.0

    @property
    def typical_row_s(self) -> float:
        """The median of its times; it must have one."""
        return statistics.median(self.row_s)

    @property
    def later(self) -> "Trial":
        """Without its first time, which may have been chosen for being short."""
        return replace(self, row_s=self.row_s[1:])

    @property
    def rate_text(self) -> str:
        """Images a minute, for a person."""
        if self.row_s:
            return f"{self.images_per_min:.1f}"
        return f"< {self.below:.1f}" if self.below else "-"

    def beats(self, other: "Trial") -> bool:
        """Whether it is faster by more than chance; one without a time can't be compared with."""
        return bool(other.row_s) and self.images_per_min > MIN_GAIN * other.images_per_min


# With fewer images a further decoder gains where a job begins and ends, and so only once a job. Measured at 2B on two
# cores: with four images two decoders were 1.02 to 1.09 times as fast as one, with 32 real ones 0.96 and 1.03 times.
MIN_ROWS_A_DECODER = 8

# The winner and the default are compared so often at most, the first measurement of each among them.
MAX_COMPARISONS = 3

# Measures a candidate; the time for an image beyond which it can't win.
Measure = Callable[[Settings, float], Trial]


@dataclass(slots=True)
class Search:
    """The descent.

    Attributes:
        moves: the groups of settings, in order.
        measure: times a candidate.
        has_time: whether two more measurements fit into the time, with so many seconds an image.
        trials: what was tried; the first is the default.
        untried: candidates there was no time for.
    """

    moves: Sequence[Move]
    measure: Measure
    has_time: Callable[[float], bool]
    trials: list[Trial]
    untried: list[Settings] = field(default_factory=list)

    def run(self) -> Trial:
        """The fastest; the first trial where nothing beats it."""
        best = self._descend(self.trials[0])
        if best is not self.trials[0]:
            best = self._confirmed(best)
        return best

    def _descend(self, best: Trial) -> Trial:
        improved = True
        while improved:
            improved = False
            for move in self.moves:
                for candidate in move(best.settings):
                    if not self._is_new(candidate, best):
                        continue
                    trial = self.measure(candidate, best.typical_row_s)
                    self.trials.append(trial)
                    if trial.beats(best):
                        best, improved = trial, True
        return best

    def _is_new(self, candidate: Settings, best: Trial) -> bool:
        """Whether to measure it: it was not yet, and there is time for it and to begin to confirm it if it wins.

        It may not take longer than the best.
        """
        if any(trial.settings == candidate for trial in self.trials):
            return False
        if self.has_time(best.typical_row_s):
            return True
        if candidate not in self.untried:
            self.untried.append(candidate)
        return False

    def _confirmed(self, best: Trial) -> Trial:
        """Time the winner and the default in turn, at least once more and while there is time: luck does not last."""
        default = self.trials[0]
        for _again in range(1, MAX_COMPARISONS):
            for trial in (default, best):
                trial.row_s += self.measure(trial.settings, math.inf).row_s
            if not self.has_time(default.typical_row_s):
                break
        return best if best.beats(default) and best.later.beats(default.later) else default


def moves_for(machine: Machine, rows: int, *, w8a8: bool, encoders: Sequence[Encoder]) -> list[Move]:
    """The groups of settings that are worth trying on a machine, the most promising first.

    Args:
        machine: where.
        rows: images that each candidate is timed with; more slots than these can't be told apart, nor decoders that
            have too few of them.
        w8a8: whether the decoder gains from many rows.
        encoders: vision encoders that may be used.
    """
    more = [W8A8_SLOTS, 32, 24] if w8a8 else [32, 16]

    def encoder(now: Settings) -> list[Settings]:
        return [now.with_encoder(one) for one in encoders]

    def workers(now: Settings) -> list[Settings]:
        return [
            replace(now, decoders=decoders, decoder_threads=threads, vision_threads=vision)
            for decoders, threads, vision in _workers(machine)
            if decoders == 1 or rows >= MIN_ROWS_A_DECODER * decoders
        ]

    def slots(now: Settings) -> list[Settings]:
        return [replace(now, slots=count) for count in more if count * now.decoders <= rows]

    def patches(now: Settings) -> list[Settings]:
        return [replace(now, patch_budget=1024)]

    return [slots, encoder, workers, patches] if w8a8 else [encoder, workers, slots, patches]


def encoders_for(default: Encoder, machine: Machine, *, rounded: bool) -> list[Encoder]:
    """Vision encoders to try beside the default one.

    Args:
        default: backend and arithmetic that a job takes by itself here.
        machine: where.
        rounded: whether they may round more than the default one; else only those with its arithmetic.
    """
    found: list[Encoder] = []
    if default[1] is VisionDtype.FP32:
        backends = (VisionBackend.TORCH, VisionBackend.ONNX) if machine.torch else (VisionBackend.ONNX,)
        found += [(backend, VisionDtype.FP32) for backend in backends]
    if rounded:
        found = [INT8_ENCODER, *found]  # the most promising first
    return [one for one in found if one != default]


def _workers(machine: Machine) -> list[tuple[int, int, int]]:
    """Decoders, threads of each, threads of the vision encoder; 0: as many as there are."""
    cpus, cores = machine.cpus, machine.cores
    found = []
    if cores < cpus:  # two threads of a core share the units that multiply
        found.append((1, cores, cores))
    if cpus >= 2:
        found += [(2, 0, 0), (1, 0, cpus // 2), (1, cpus // 2, cpus // 2)]
    if cpus >= 16:
        found.append((4, 0, 0))
    return found
