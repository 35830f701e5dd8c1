"""Owns the rounds: prepares the contestants, runs them in turn, and keeps what each took."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from process_tree import run_watched
from real_size import FLAGS
from tokenizers import Tokenizer

from batchcap.core import offline
from batchcap.core.machine import cpu_flags, cpu_name
from peers.ceiling import ImageSize, arithmetic_ops
from peers.contestants import PROGRAMS, Contestant, Prepared
from peers.environments import MissingPeerError, last_lines
from peers.protocol import CHAT, TOKEN_SIDE_PX, VISION_MARKS, Outcome, Task
from peers.report import Results, Run

PATCHES_PER_TOKEN = 4


@dataclass(slots=True)
class Benchmark:
    """Contestants and what they have to do.

    Attributes:
        work: folder for all that is made.
        checkpoint: that everybody's model is made of.
        task: what each has to do.
        missing: reason by contestant that can't take part; grows.
    """

    work: Path
    checkpoint: Path
    task: Task
    missing: dict[str, str]

    def prepare(self, contestants: Sequence[Contestant]) -> dict[Contestant, Prepared]:
        """Make environments and models; who fails goes to `missing`."""
        prepared = {}
        for contestant in contestants:
            print(f"preparing {contestant.name}", flush=True)
            try:
                prepared[contestant] = contestant.prepare(self.work)
            except (MissingPeerError, OSError) as error:
                self.missing[contestant.name] = str(error)
                print(f"missing: {contestant.name}: {error}", flush=True)
        return prepared

    def run(self, contestants: dict[Contestant, Prepared], rounds: int) -> Results:
        """All rounds: in each the machine's ceiling, then every contestant once; who fails once is out."""
        ceilings: dict[str, float] = {}
        runs: list[Run] = []
        load_before = os.getloadavg()[0]
        for number in range(rounds):
            for name, rate in self._ceilings().items():
                ceilings[name] = max(rate, ceilings.get(name, 0.0))
            for contestant, prepared in contestants.items():
                if contestant.name in self.missing:
                    continue
                try:
                    runs.append(self._run(contestant, prepared, number))
                    print(_progress(runs[-1]), flush=True)
                except MissingPeerError as error:
                    self.missing[contestant.name] = f"failed in round {number + 1}: {error}"
                    print(f"missing: {contestant.name}: {error}", flush=True)
        size = self._mean_image(runs)
        config = json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))
        task = self._task_figures(rounds, size)
        return Results(_machine(load_before), task, arithmetic_ops(config, size), ceilings, runs, self.missing)

    def _ceilings(self) -> dict[str, float]:
        command = [sys.executable, "-m", "peers.ceiling", str(self.task.threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment(self.task)).stdout
        rates: dict[str, float] = json.loads(output.splitlines()[-1])
        return rates

    def _run(self, contestant: Contestant, prepared: Prepared, number: int) -> Run:
        folder = self.work / "peers" / "runs" / contestant.name
        folder.mkdir(parents=True, exist_ok=True)
        task, output, log = folder / "task.json", folder / "output.txt", folder / "log.txt"
        some_of(self.task, contestant.every).write(task)
        command = contestant.command(prepared, task)
        with output.open("w", encoding="utf-8") as stdout, log.open("w", encoding="utf-8") as stderr:
            usage = run_watched(command, stdout=stdout, stderr=stderr, env=_environment(self.task))
        if usage.exit_code:
            reason = last_lines(log.read_text(encoding="utf-8", errors="replace"))
            raise MissingPeerError(f"ended with {usage.exit_code}: {reason}")
        try:
            outcome = Outcome.of_output(output.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MissingPeerError(str(error)) from error
        start_up_s = usage.elapsed_s - outcome.wall_s
        return Run(number, contestant.name, outcome, start_up_s, usage.peak_pss_mib, usage.load_before)

    def _mean_image(self, runs: Sequence[Run]) -> ImageSize:
        """The mean of the images' tokens, as the contestants resize them."""
        tokenizer = Tokenizer.from_file(str(self.checkpoint / "tokenizer.json"))
        text = CHAT.format(image=VISION_MARKS, prompt=self.task.prompt)
        images = sum(run.outcome.images for run in runs) or 1
        visual_tokens = round(sum(run.outcome.visual_tokens for run in runs) / images)
        prompt_tokens = len(tokenizer.encode(text).ids) + visual_tokens
        return ImageSize(visual_tokens * PATCHES_PER_TOKEN, prompt_tokens, self.task.new_tokens)

    def _task_figures(self, rounds: int, size: ImageSize) -> dict[str, Any]:
        return {
            "images": len(self.task.images),
            "rounds": rounds,
            "prompt": self.task.prompt,
            "max_visual_tokens": self.task.max_pixels // TOKEN_SIDE_PX**2,
            "mean_visual_tokens": size.patches // PATCHES_PER_TOKEN,
            "mean_prompt_tokens": size.prompt_tokens,
            "new_tokens": self.task.new_tokens,
            "threads": self.task.threads,
            "sequences": self.task.sequences,
        }


def some_of(task: Task, every: int) -> Task:
    """The task with every so many-th image in the order of their sizes: as large in the mean as all of them."""
    if every == 1:
        return task

    def pixels(path: str) -> int:
        with Image.open(path) as image:
            return min(max(image.width * image.height, task.min_pixels), task.max_pixels)

    by_size = sorted(task.images, key=pixels)
    return replace(task, images=by_size[every // 2 :: every])


def _environment(task: Task) -> dict[str, str]:
    """Of the programs: where `peers` is, threads for libraries that take no argument, and nothing from the network."""
    return offline.environment() | {"PYTHONPATH": str(PROGRAMS), "OMP_NUM_THREADS": str(task.threads)}


def _machine(load_before: float) -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": cpu_name(),
        "flags": [flag for flag in FLAGS if flag in cpu_flags()],
        "python": platform.python_version(),
        "batchcap": metadata.version("batchcap"),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }


def _progress(run: Run) -> str:
    return (
        f"round {run.round + 1}: {run.contestant}: {run.images_per_min:.1f} images/min, {run.outcome.wall_s:.1f} s, "
        f"{run.outcome.visual_tokens} visual tokens, {run.outcome.new_tokens} new tokens, load {run.load_before:.1f}"
    )
