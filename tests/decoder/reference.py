"""What transformers says: features and greedy captions of the reference model, one image at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from batchcap.core.records import Features
from batchcap.model.prompt import PromptTemplate


@dataclass
class Reference:
    """The reference model of a checkpoint, and images of random patches for it."""

    model: Qwen3VLForConditionalGeneration

    @classmethod
    def load(cls, checkpoint: Path) -> "Reference":
        return cls(Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval())

    def image(self, grid: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random patches [P, values] and their grid [1, 3] for so many visual tokens down and across."""
        generator = torch.Generator().manual_seed(seed)
        vision = self.model.config.vision_config
        down, across = grid[0] * 2, grid[1] * 2
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.randn(down * across, values, generator=generator), torch.tensor([[1, down, across]])

    @torch.no_grad()
    def features(self, index: int, grid: tuple[int, int], seed: int) -> Features:
        pixels, thw = self.image(grid, seed)
        out = self.model.model.get_image_features(pixels, thw)
        embeds = torch.cat(list(out.pooler_output)).numpy()
        levels = [torch.cat(list(one)) if isinstance(one, (tuple, list)) else one for one in out.deepstack_features]
        deepstack = torch.stack(levels).numpy()
        return Features(index, embeds, deepstack, grid, 0, 0, "", 0.0, 0.0)

    def input_ids(self, prompt: PromptTemplate, grid: tuple[int, int]) -> torch.Tensor:
        pad = self.model.config.image_token_id
        return torch.tensor([[*prompt.prefix_ids, *[pad] * (grid[0] * grid[1]), *prompt.suffix_ids]])

    @torch.no_grad()
    def caption_ids(
        self, prompt: PromptTemplate, grid: tuple[int, int], seed: int, new_tokens: int, **options: float
    ) -> list[int]:
        """Greedy ids up to and without the stop token."""
        pixels, thw = self.image(grid, seed)
        ids = self.input_ids(prompt, grid)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            image_grid_thw=thw,
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
            max_new_tokens=new_tokens,
            do_sample=False,
            **options,
        )[0, ids.shape[1] :]
        stop = self.model.generation_config.eos_token_id
        new = out.tolist()
        cut = [place for place, token in enumerate(new) if token in (stop if isinstance(stop, list) else [stop])]
        return new[: cut[0]] if cut else new


def zeroed(features: Features) -> Features:
    """The same features without DeepStack."""
    return Features(
        features.index, features.embeds, np.zeros_like(features.deepstack), features.grid, 0, 0, "", 0.0, 0.0
    )
