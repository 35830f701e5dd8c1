"""Owns the comparison of a decoder with the reference: the last token's logits beside those of transformers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from batchcap.core.records import Float32Array, Int64Array
from batchcap.decoder.positions import prompt_positions
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.graph.check import DecoderRun
from batchcap.export.transformers_model import load_model
from batchcap.model.bundle import EmbeddingTable
from batchcap.model.geometry import Geometry

# Visual tokens down and across of the images compared: square, flat, tall.
GRIDS = ((2, 2), (2, 5), (6, 3))
PREFIX_TOKENS = 4
SUFFIX_TOKENS = 6


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest values over the last token's logits.

    Attributes:
        difference: between the graph and transformers.
        difference_without_deepstack: the same with the graph's DeepStack inputs zeroed.
        scale: largest magnitude of a logit.
    """

    difference: float
    difference_without_deepstack: float
    scale: float


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt with an image of random patches: what the graph reads, and what transformers answers."""

    embeds: Float32Array  # [S, H]
    deepstack: list[Float32Array]  # D × [S, H]
    positions: Int64Array  # [3, S]
    expected: Float32Array  # [V]


def compare_with_transformers(
    checkpoint: Path, graph: Path, embeddings: EmbeddingTable, geometry: Geometry
) -> list[Parity]:
    """Compare the graph with the checkpoint in transformers, one prompt for each of `GRIDS`.

    Both get the same features, those of transformers' vision tower, so only the decoder is compared. Needs memory for
    the whole checkpoint in float32.
    """
    model = load_model(open_checkpoint(str(checkpoint)), torch.float32)
    run = DecoderRun(graph, geometry)
    return [_compare(run, prompt) for prompt in _prompts(model, embeddings, geometry)]


def _compare(run: DecoderRun, prompt: _Prompt) -> Parity:
    found, _token, _cache = run(prompt.embeds, prompt.deepstack, prompt.positions)
    zeros = [np.zeros_like(level) for level in prompt.deepstack]
    without, _token, _cache = run(prompt.embeds, zeros, prompt.positions)
    return Parity(
        difference=float(np.abs(found - prompt.expected).max()),
        difference_without_deepstack=float(np.abs(without - prompt.expected).max()),
        scale=float(np.abs(prompt.expected).max()),
    )


@torch.no_grad()
def _prompts(
    model: Qwen3VLForConditionalGeneration, embeddings: EmbeddingTable, geometry: Geometry
) -> Iterable[_Prompt]:
    tokens, vision = geometry.tokens, geometry.vision
    generator = torch.Generator().manual_seed(0)
    words = torch.arange(PREFIX_TOKENS + SUFFIX_TOKENS - 2).tolist()
    for down, across in GRIDS:
        count = down * across
        pads = [tokens.image_pad] * count
        prefix = [*words[: PREFIX_TOKENS - 1], tokens.vision_start]
        ids = torch.tensor([[*prefix, *pads, tokens.vision_end, *words[PREFIX_TOKENS - 1 :]]])
        image = ids == tokens.image_pad
        patches = torch.randn(count * vision.merge_size**2, vision.patch_values, generator=generator)
        grid = torch.tensor([[1, down * vision.merge_size, across * vision.merge_size]])
        answer = model(input_ids=ids, pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=image.int())
        features = model.model.get_image_features(patches, grid)
        is_image = image[0].numpy()
        embeds = embeddings.lookup(ids[0].numpy())
        embeds[is_image] = _joined(features.pooler_output)
        deepstack = [np.zeros_like(embeds) for _level in vision.deepstack_levels]
        for level, values in zip(deepstack, features.deepstack_features, strict=True):
            level[is_image] = _joined(values)
        positions, _next = prompt_positions(PREFIX_TOKENS, (down, across), SUFFIX_TOKENS)
        yield _Prompt(embeds, deepstack, positions, answer.logits[0, -1].numpy())


def _joined(values: torch.Tensor | Iterable[torch.Tensor]) -> Float32Array:
    """One image's features; transformers gives them as a tensor or as one tensor an image."""
    joined: Float32Array = (values if isinstance(values, torch.Tensor) else torch.cat(list(values))).numpy()
    return joined
