"""Owns the training of the demo model: `python -m training.train` makes the checkpoint from nothing."""

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration

from batchcap.demo.scenes import corpus
from batchcap.export.demo import demo_checkpoint
from batchcap.vision.linear import has_packed_kernels
from training.batches import Batch, batches, make_batch
from training.fast_model import FakeInt4Linear, caption_logits, patchify, use_fake_int4
from training.huggingface import build_config, save_checkpoint
from training.text import OTHER_PROMPTS, PROMPT, token_id, train_tokenizer

BATCH_SIZE = 48
PEAK_LEARNING_RATE = 1.2e-3
FINAL_LEARNING_RATE = 1e-5
WARMUP_STEPS = 300
WEIGHT_DECAY = 0.02
EMA_DECAY = 0.999
GRADIENT_NORM = 1.0
# The last part of the training rounds the decoder's weights as INT4 will, so that little is lost by it.
INT4_SHARE = 0.3
INT4_BLOCKS = (32, 128)
SAVE_INTERVAL_S = 300.0
CHECK_STEPS = 500
CHECK_SEED = 7
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and where to.

    Attributes:
        steps: the whole length, also of a resumed training: learning rate and rounding follow it.
        seed: decides the first weights and the scenes.
        state_path: file to resume from.
        output: folder of the checkpoint.
        minutes: stop after this time, to be resumed later.
    """

    steps: int
    seed: int
    state_path: Path
    output: Path
    minutes: float = math.inf


def make_tokenizer() -> Tokenizer:
    """The demo model's tokenizer; the same each time."""
    return train_tokenizer([*corpus(), PROMPT, *OTHER_PROMPTS, "user\nassistant\nsystem\n"])


def tokens_and_labels(tokenizer: Tokenizer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Token ids and labels, [B, S] each: the label of a position is the next token where that is of the caption."""
    height, width = batch.pixels.shape[1:3]
    picture = "<|image_pad|>" * (height // 32 * (width // 32))
    rows: list[tuple[list[int], int]] = []
    for prompt, caption in zip(batch.prompts, batch.captions, strict=True):
        head = f"<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
        head_ids = tokenizer.encode(head).ids
        rows.append((head_ids + tokenizer.encode(f"{caption}<|im_end|>").ids, len(head_ids)))
    longest = max(len(ids) for ids, _start in rows)
    token_ids = torch.full((len(rows), longest), token_id(tokenizer, "<|endoftext|>"))
    labels = torch.full((len(rows), longest), IGNORED)
    for number, (ids, start) in enumerate(rows):
        token_ids[number, : len(ids)] = torch.tensor(ids)
        labels[number, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return token_ids, labels


def batch_logits(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [K, V] and labels [B, S] of a batch."""
    token_ids, labels = tokens_and_labels(tokenizer, batch)
    height, width = batch.pixels.shape[1:3]
    grid = torch.tensor([[1, height // 16, width // 16]])
    # Without arithmetic for bfloat16 a CPU takes far longer over it than over float32.
    with torch.autocast("cpu", torch.bfloat16, enabled=has_packed_kernels(torch.bfloat16)):
        logits = caption_logits(model, token_ids, patchify(torch.from_numpy(batch.pixels)), grid, labels != IGNORED)
    return logits.float(), labels


def assert_fast_equals_stock(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Compare the fast forward with transformers' own, so that what is trained is what is saved."""
    batch = make_batch(CHECK_SEED, 0, 4)
    token_ids, labels = tokens_and_labels(tokenizer, batch)
    patches = patchify(torch.from_numpy(batch.pixels))
    height, width = batch.pixels.shape[1:3]
    grid = torch.tensor([[1, height // 16, width // 16]])
    with torch.no_grad():
        fast = caption_logits(model, token_ids, patches, grid, labels != IGNORED)
        stock = model(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            pixel_values=patches.reshape(-1, patches.shape[-1]),
            image_grid_thw=grid.expand(len(token_ids), -1),
            mm_token_type_ids=(token_ids == model.config.image_token_id).int(),
        ).logits[labels != IGNORED]
    difference = (fast - stock).abs().max().item()
    if difference > 1e-4:
        raise RuntimeError(f"the fast forward differs from transformers' by {difference}")


@torch.no_grad()
def exact_share(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, count: int) -> float:
    """Share of held-out captions whose every token is the likeliest one: what greedy decoding would get right."""
    right = total = step = 0
    while total < count:
        batch = make_batch(CHECK_SEED, step, BATCH_SIZE)
        logits, labels = batch_logits(model, tokenizer, batch)
        wrong = torch.zeros(labels.shape, dtype=torch.bool)
        wrong[labels != IGNORED] = logits.argmax(-1) != labels[labels != IGNORED]
        right += int((~wrong.any(1)).sum())
        total += len(labels)
        step += 1
    return right / total


class Trainer:
    """A training that can be stopped and resumed."""

    def __init__(self, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.tokenizer = make_tokenizer()
        self.model = Qwen3VLForConditionalGeneration(build_config(self.tokenizer))
        self.model.set_attn_implementation("eager")  # faster than the fused kernel at these sizes on a CPU
        self.average = Qwen3VLForConditionalGeneration(build_config(self.tokenizer)).train(mode=False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        )
        self.step = 0
        if plan.state_path.exists():
            state = torch.load(plan.state_path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    @property
    def int4_from_step(self) -> int:
        """The step from which on the decoder's weights are rounded."""
        return round(self.plan.steps * (1 - INT4_SHARE))

    def save(self) -> None:
        """Write the state for a resume and the checkpoint of the averaged weights."""
        self.plan.state_path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.plan.state_path.with_suffix(".tmp"))
        self.plan.state_path.with_suffix(".tmp").replace(self.plan.state_path)
        save_checkpoint(self.average, self.tokenizer, self.plan.output)

    def _learning_rate(self) -> float:
        if self.step < WARMUP_STEPS:
            return PEAK_LEARNING_RATE * (self.step + 1) / WARMUP_STEPS
        done = (self.step - WARMUP_STEPS) / max(1, self.plan.steps - WARMUP_STEPS)
        swing = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return FINAL_LEARNING_RATE + (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * swing

    def _train_step(self, batch: Batch) -> float:
        rounding = self.step >= self.int4_from_step
        use_fake_int4(self.model, on=rounding)
        FakeInt4Linear.block_size = INT4_BLOCKS[self.step % len(INT4_BLOCKS)]
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        logits, labels = batch_logits(self.model, self.tokenizer, batch)
        loss = F.cross_entropy(logits, labels[labels != IGNORED])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for averaged, current in pairs:
                averaged.lerp_(current, 1 - decay)
        return loss.item()

    def run(self) -> None:
        """Train to the last step of the plan, or until its time is up."""
        assert_fast_equals_stock(self.model, self.tokenizer)
        self.save()
        with closing(batches(self.plan.seed, self.step, BATCH_SIZE)) as drawn:
            self._run(drawn)
        self.save()

    def _run(self, drawn: Iterator[Batch]) -> None:
        started = saved = time.monotonic()
        first_step = self.step
        for batch in drawn:
            loss = self._train_step(batch)
            if self.step % 100 == 0:
                pace = (time.monotonic() - started) / (self.step - first_step)
                print(f"step {self.step} loss {loss:.4f} {pace:.3f} s/step", flush=True)
            if self.step % CHECK_STEPS == 0 or self.step >= self.plan.steps:
                self._report()
            if time.monotonic() - saved > SAVE_INTERVAL_S:
                saved = time.monotonic()
                self.save()
            if self.step >= self.plan.steps or time.monotonic() - started > 60 * self.plan.minutes:
                return

    def _report(self) -> None:
        plain = exact_share(self.average, self.tokenizer, 300)
        use_fake_int4(self.average, on=True)
        rounded = exact_share(self.average, self.tokenizer, 300)
        use_fake_int4(self.average, on=False)
        print(f"step {self.step} exact {plain:.3f} as INT4 {rounded:.3f}", flush=True)


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=7000, help="whole length of the training")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; the same call resumes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("demo-train/state.pt"), help="file to resume from")
    parser.add_argument("--output", type=Path, default=demo_checkpoint())
    options = parser.parse_args()
    # Adam's averages of tiny gradients become denormal numbers, which a CPU handles several times slower.
    torch.set_flush_denormal(True)
    Trainer(Plan(options.steps, options.seed, options.state, options.output, options.minutes)).run()


if __name__ == "__main__":
    main()
