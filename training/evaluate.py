"""Owns the demo model's figures: exact captions on scenes never trained on, by three ways of running it.

`python -m training.evaluate` prints them.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from batchcap.config import InputConfig, JobConfig, VisionConfig, VisionDtype
from batchcap.demo.scenes import compose, draw
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.demo import demo_checkpoint, load_model
from batchcap.export.export import export_bundle
from batchcap.job.progress import LogProgress
from batchcap.job.run import run_job
from training.batches import random_size
from training.text import PROMPT

MAX_NEW_TOKENS = 48
# What the demo model is held to.
AT_LEAST_TRANSFORMERS = 0.95
AT_LEAST_INT4 = 0.93
BELOW_WITHOUT_DEEPSTACK = 0.60


@dataclass(frozen=True, slots=True)
class Example:
    """A scene never trained on: evaluation seeds lie below the training's."""

    image: Image.Image
    caption: str


def examples(count: int) -> Iterator[Example]:
    """Scenes of many sizes and aspects; the same ones each time."""
    for seed in range(count):
        rng = random.Random(seed)
        width, height = random_size(rng)
        scene = compose(rng, width / height)
        yield Example(draw(scene, rng, width, height), scene.caption)


class Reference:
    """The checkpoint in transformers, fp32."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._processor = AutoImageProcessor.from_pretrained(checkpoint)
        self._model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        """One caption, greedy."""
        pixels = self._processor(images=[image], return_tensors="pt")
        tokens = int(pixels["image_grid_thw"].prod()) // 4
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self._tokenizer(chat.replace("<|image_pad|>", "<|image_pad|>" * tokens), return_tensors="pt").input_ids
        out = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self._model.config.image_token_id).int(),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            **pixels,
        )
        text: str = self._tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return text.strip()

    def drop_deepstack(self) -> None:
        """From now on the DeepStack features are zero."""
        for merger in self._model.model.visual.deepstack_merger_list:
            merger.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))


def share_by_transformers(checkpoint: Path, count: int, *, deepstack: bool) -> float:
    """Share of exact captions with transformers in fp32."""
    reference = Reference(checkpoint)
    if not deepstack:
        reference.drop_deepstack()
    return sum(reference.caption(example.image) == example.caption for example in examples(count)) / count


def share_by_batchcap(checkpoint: Path, block_size: int, count: int) -> float:
    """Share of exact captions of a whole batchcap job with an INT4 bundle made of the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        export_bundle(str(checkpoint), scratch / "bundle", ExportOptions(block_size=block_size))
        pictures = scratch / "pictures"
        pictures.mkdir()
        truth = {}
        for number, example in enumerate(examples(count)):
            name = f"{number:05d}.png"
            example.image.save(pictures / name)
            truth[name] = example.caption
        vision = VisionConfig(dtype=VisionDtype.BF16)
        inputs = InputConfig((str(pictures),))
        job = JobConfig(inputs, str(scratch / "out"), str(scratch / "bundle"), vision=vision)
        run_job(job, LogProgress(), load_model=load_model)
        rows = pq.read_table(scratch / "out", columns=["id", "caption"]).to_pylist()
    exact: int = sum(row["caption"] == truth[row["id"]] for row in rows)
    return exact / count


def main() -> None:
    """Print the three figures; exit code 1 where one misses its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--checkpoint", type=Path, default=demo_checkpoint())
    parser.add_argument("--block-size", type=int, default=ExportOptions().block_size, help="of the INT4 decoder")
    options = parser.parse_args()
    count = options.scenes
    reference = share_by_transformers(options.checkpoint, count, deepstack=True)
    print(f"transformers fp32                  {reference:7.1%}  (at least {AT_LEAST_TRANSFORMERS:.0%})", flush=True)
    without = share_by_transformers(options.checkpoint, count, deepstack=False)
    print(f"transformers fp32, DeepStack zero  {without:7.1%}  (below {BELOW_WITHOUT_DEEPSTACK:.0%})", flush=True)
    ours = share_by_batchcap(options.checkpoint, options.block_size, count)
    print(f"batchcap INT4, bf16 vision         {ours:7.1%}  (at least {AT_LEAST_INT4:.0%})", flush=True)
    print(f"exact captions on {count} scenes never trained on")
    if reference < AT_LEAST_TRANSFORMERS or without >= BELOW_WITHOUT_DEEPSTACK or ours < AT_LEAST_INT4:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
