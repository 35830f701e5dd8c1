"""Owns how fast settings are: the same images through real worker processes, from the first to the last caption."""

import io
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from batchcap.config import GenerationConfig, InputConfig, JobConfig, VisionConfig
from batchcap.core.errors import WorkerError
from batchcap.core.records import Failure, ImageRow, Outcome, Request
from batchcap.core.sources import Bytes
from batchcap.demo.scenes import compose, draw
from batchcap.engines.config import EngineConfig
from batchcap.engines.drive import drive
from batchcap.engines.local import LocalEngine
from batchcap.engines.profiles import Settings
from batchcap.model.bundle import Bundle

# A quarter of an everyday job (256 visual tokens, 64 new ones), so that a minute is enough for some candidates.
VISUAL_TOKENS = 64
NEW_TOKENS = 16
SIDE_PX = 256
# Trained models answer this with more than NEW_TOKENS, so all captions are equally long.
PROMPT = "Describe everything in this image in as much detail as you can."
ASKED = GenerationConfig(PROMPT, NEW_TOKENS, loop_stop=False)
# A candidate is timed with whole batches of so many images where there is time for them; with fewer it is a guess.
BATCH_ROWS = 16
MIN_ROWS, MAX_ROWS = 4, 256
POLL_S = 0.05
_SEED = 1 << 39  # no scene that the demo model was trained or is evaluated on


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one candidate took.

    Attributes:
        load_s: until its workers had loaded their models and each decoder had written a first caption.
        row_s: seconds an image; None where it was given up.
    """

    load_s: float
    row_s: float | None


class Track:
    """Images to be captioned with any settings; the same ones each time."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._images: list[bytes] = []
        self._next_index = 0

    def first(self, settings: Settings, plan: Callable[[float, float], int]) -> tuple[int, Timing]:
        """Time the first candidate, and choose how many images this and the others are timed with.

        Args:
            settings: the candidate.
            plan: the number of images for seconds of loading and seconds an image, about.

        Returns:
            The number of images, and the candidate's timing.
        """
        began_s = time.perf_counter()
        with closing(self._start(settings)) as engine:
            engine.start(lambda: False)
            row_s = self._run(engine, settings.decoders) / settings.decoders
            load_s = time.perf_counter() - began_s
            rows = plan(load_s, row_s)
            self._draw(rows)
            return rows, Timing(load_s, self._run(engine, rows) / rows)

    def time(self, settings: Settings, rows: int, give_up_s: float) -> Timing:
        """Time a candidate.

        Args:
            settings: the candidate.
            rows: images to caption.
            give_up_s: when it is slower than this, all images together, it is given up.

        Raises:
            WorkerError: a worker ended, or an image was not captioned.
        """
        began_s = time.perf_counter()
        with closing(self._start(settings)) as engine:
            engine.start(lambda: False)
            self._run(engine, settings.decoders)
            load_s = time.perf_counter() - began_s
            elapsed_s = self._run(engine, rows, give_up_s)
            return Timing(load_s, elapsed_s / rows if elapsed_s <= give_up_s else None)

    def _start(self, settings: Settings) -> LocalEngine:
        return LocalEngine(EngineConfig.of_job(self._bundle, settings.applied_to(_job(self._bundle))))

    def _draw(self, count: int) -> None:
        while len(self._images) < count:
            self._images.append(_image(len(self._images)))

    def _requests(self, count: int) -> Iterator[Request]:
        self._draw(count)
        for data in self._images[:count]:
            # Bytes behind an image's end change its digest, and nothing else: so no row is another's duplicate.
            index = self._next_index
            self._next_index += 1
            row = ImageRow(index, str(index), "generated", index, Bytes(data + str(index).encode()))
            yield Request(row, ASKED.prompts, ASKED.sampling)

    def _run(self, engine: LocalEngine, count: int, give_up_s: float = float("inf")) -> float:
        """Seconds from the first image handed over to the last caption; more than `give_up_s` if it was given up."""
        self._draw(count)
        began_s = time.perf_counter()

        def is_too_slow() -> bool:
            return time.perf_counter() - began_s > give_up_s

        drive(engine, self._requests(count), _require_captions, is_too_slow, POLL_S)
        return time.perf_counter() - began_s


def _require_captions(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome.result, Failure):
            raise WorkerError(f"a generated image was not captioned: {outcome.result.message}")


def rows_for(affordable: float) -> int:
    """How many images to time a candidate with, where there is time for about so many."""
    if affordable < BATCH_ROWS / 2:
        return max(MIN_ROWS, int(affordable))
    return min(MAX_ROWS, max(1, round(affordable / BATCH_ROWS)) * BATCH_ROWS)


def _job(bundle: Bundle) -> JobConfig:
    return JobConfig(
        InputConfig(("generated",)),
        "nowhere",
        str(bundle.folder),
        generation=ASKED,
        vision=VisionConfig(VISUAL_TOKENS),
    )


def _image(number: int) -> bytes:
    """A few drawn things, as JPEG."""
    chance = random.Random(_SEED + number)  # noqa: S311 - it draws, it keeps no secret
    buffer = io.BytesIO()
    draw(compose(chance, 1.0), chance, SIDE_PX, SIDE_PX).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
