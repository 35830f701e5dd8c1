"""transformers' `generate`: bf16 where the CPU has arithmetic for it, else fp32; one image or a few at once.

usage: python -m peers.run_transformers TASK.json CHECKPOINT [--batch 4]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLForConditionalGeneration

from peers.protocol import DECODE, PREFILL, READ, VISION, Outcome, Stopwatch, Task, serve, versions

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


class Generator:
    """Model, tokenizer and image processor, with a stopwatch on the model's parts."""

    def __init__(self, task: Task, checkpoint: Path, dtype: torch.dtype) -> None:
        self.task = task
        self.clock = Stopwatch()
        self.visual_tokens = 0
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        # AutoProcessor would want torchvision for the videos that there are none of.
        self.processor = Qwen2VLImageProcessor.from_pretrained(
            checkpoint, size={"shortest_edge": task.min_pixels, "longest_edge": task.max_pixels}
        )
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()
        self.text_passes = 0
        _watch(self.model.model.visual, self.clock, lambda: VISION)
        _watch(self.model.model.language_model, self.clock, self._text_stage)

    def _text_stage(self) -> str:
        self.text_passes += 1
        return PREFILL if self.text_passes == 1 else DECODE

    @torch.inference_mode()
    def caption(self, paths: list[str], new_tokens: int) -> int:
        """Caption some images together; returns the number of new tokens."""
        with self.clock.time(READ):
            images = [Image.open(path).convert("RGB") for path in paths]
            pixels = self.processor(images=images, return_tensors="pt")
        counts = [int(grid.prod()) // self.processor.merge_size**2 for grid in pixels["image_grid_thw"]]
        self.visual_tokens += sum(counts)
        tokens = self.tokenizer([self._text(count) for count in counts], padding=True, return_tensors="pt")
        is_image = tokens["input_ids"] == self.model.config.image_token_id
        self.text_passes = 0
        answer = self.model.generate(
            **tokens,
            **pixels,
            mm_token_type_ids=is_image.to(torch.int32),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
        return int((answer.shape[1] - tokens["input_ids"].shape[1]) * len(paths))

    def _text(self, visual_tokens: int) -> str:
        content = [{"type": "image"}, {"type": "text", "text": self.task.prompt}]
        text: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return text.replace("<|image_pad|>", "<|image_pad|>" * visual_tokens)


def _watch(module: torch.nn.Module, clock: Stopwatch, stage: Callable[[], str]) -> None:
    """Add the time of every pass through the module to the stage that the function names."""
    forward = module.forward

    def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the module takes and gives
        with clock.time(stage()):
            return forward(*args, **kwargs)

    module.forward = timed


def run(task: Task, checkpoint: Path, options: list[str]) -> Outcome:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1)
    batch: int = parser.parse_args(options).batch
    torch.set_num_threads(task.threads)
    dtype = torch.bfloat16 if _has_bf16() else torch.float32
    generator = Generator(task, checkpoint, dtype)
    generator.caption(task.images[:1], 2)
    generator.clock.seconds.clear()
    generator.visual_tokens = 0
    started_s = time.perf_counter()
    new_tokens = 0
    for start in range(0, len(task.images), batch):
        new_tokens += generator.caption(task.images[start : start + batch], task.new_tokens)
    return Outcome(
        images=len(task.images),
        new_tokens=new_tokens,
        visual_tokens=generator.visual_tokens,
        wall_s=time.perf_counter() - started_s,
        stage_s=generator.clock.seconds,
        precision="bf16" if dtype == torch.bfloat16 else "fp32 (this CPU has no bf16 arithmetic)",
        versions=versions("torch", "transformers"),
    )


def _has_bf16() -> bool:
    return any(flag in Path("/proc/cpuinfo").read_text(encoding="ascii").split() for flag in BF16_FLAGS)


if __name__ == "__main__":
    serve(run)
