"""Owns what the driver and a contestant's program tell each other: the task, and one JSON line of what it took.

Standard library only: programs run in their own environments.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

READ, VISION, PREFILL, DECODE = "read", "vision", "prefill", "decode"
STAGES = (READ, VISION, PREFILL, DECODE)
TOKEN_SIDE_PX = 32  # one visual token covers so many pixels in each direction
VISION_MARKS = "<|vision_start|><|vision_end|>"
# What the checkpoint's chat template makes of one turn with an image and a text.
CHAT = "<|im_start|>user\n{image}{prompt}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Task:
    """What every contestant has to do.

    Attributes:
        images: files, captioned each with one prompt.
        prompt: what is asked about an image.
        min_pixels, max_pixels: area of an image after the resize.
        new_tokens: tokens of every caption, no fewer.
        threads: of every stage; also the number of cores the process may use.
        sequences: captions in work at once, where the contestant can.
    """

    images: list[str]
    prompt: str
    min_pixels: int
    max_pixels: int
    new_tokens: int
    threads: int
    sequences: int

    def write(self, path: Path) -> None:
        """Write the task as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Task":
        """The task written by `write`."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run took, start-up and warm-up not counted.

    Attributes:
        images: captions made.
        new_tokens: tokens of all captions.
        visual_tokens: of all images.
        wall_s: from the first image asked for to the last caption done.
        stage_s: seconds by stage, as far as the program can tell; stages side by side may add up to more than wall_s.
        precision: weights and arithmetic, in words.
        versions: packages that do the work.
    """

    images: int
    new_tokens: int
    visual_tokens: int
    wall_s: float
    precision: str
    stage_s: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_output(cls, output: str) -> "Outcome":
        """The outcome in the last line of what a program printed.

        Raises:
            ValueError: the line is none.
        """
        lines = output.strip().splitlines()
        try:
            values: dict[str, Any] = json.loads(lines[-1])
            return cls(**values)
        except (IndexError, TypeError, json.JSONDecodeError) as error:
            raise ValueError("the program printed no result") from error


class Stopwatch:
    """Adds up seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time of the block to the stage."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started_s


def versions(*packages: str) -> dict[str, str]:
    """Installed versions."""
    return {package: metadata.version(package) for package in packages}


def serve(run: Callable[[Task, Path, list[str]], Outcome]) -> None:
    """A program's whole command line: TASK.json MODEL [options of its own]; prints the outcome as one line."""
    task, model, *options = sys.argv[1:]
    outcome = run(Task.read(Path(task)), Path(model), options)
    print(json.dumps(asdict(outcome)), flush=True)
