"""Owns the reference: what transformers makes of an image with a checkpoint's own weights, nothing rounded.

Letters used for shapes: T visual tokens, S tokens of a prompt, n new tokens, H hidden size, D DeepStack levels,
V vocabulary.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from batchcap.core.errors import UsageError
from batchcap.core.machine import available_memory_bytes
from batchcap.core.records import Features, Float32Array, Int64Array, Patches
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.prequantized import require_unquantized
from batchcap.export.transformers_model import load_model
from batchcap.model.prompt import PromptTemplate
from batchcap.model.tensors import HEAD, VISION, StoredTensor

log = logging.getLogger(__name__)

# Activations, logits and what the caller holds beside the weights.
SPARE_BYTES = 2 << 30
GIB = 1 << 30


class ReferenceDtype(StrEnum):
    """Arithmetic of the language model; `auto` is fp32 where the weights fit into free memory, else bf16.

    The vision tower always computes in float32.
    """

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


_TORCH_DTYPES = {ReferenceDtype.FP32: torch.float32, ReferenceDtype.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Continuation:
    """New tokens after a prompt.

    Attributes:
        token_ids: [n] the likeliest token each time; they go on after a stop token.
        logits: [n, V] float32; row i is what `token_ids[i]` was chosen by.
    """

    token_ids: tuple[int, ...]
    logits: Float32Array

    def caption_ids(self, stop: tuple[int, ...]) -> tuple[int, ...]:
        """The ids before the first stop token: what greedy decoding writes."""
        ends = (index for index, token in enumerate(self.token_ids) if token in stop)
        return self.token_ids[: next(ends, len(self.token_ids))]


class Reference:
    """A checkpoint in transformers, loaded once. Images go through it one at a time.

    Args:
        checkpoint: folder in Hugging Face layout.
        dtype: arithmetic; logged where it is not float32.

    Raises:
        UsageError: the weights do not fit into free memory, or were quantized before.
        CheckpointError: the checkpoint is missing, broken, or of another model.
    """

    def __init__(self, checkpoint: Path, dtype: ReferenceDtype = ReferenceDtype.AUTO) -> None:
        opened = open_checkpoint(str(checkpoint))
        require_unquantized(opened.tensors, "the reference")
        self.dtype = _fitting_dtype(opened.tensors, dtype)
        # Any: transformers' own annotations don't describe what its models take.
        self._model: Any = load_model(opened, _TORCH_DTYPES[self.dtype])
        self._model.model.visual.float()  # small, and features are compared closely
        self._image_pad: int = self._model.config.image_token_id
        self._merge: int = self._model.config.vision_config.spatial_merge_size

    @property
    def model(self) -> Any:  # noqa: ANN401 - as above
        """The `Qwen3VLForConditionalGeneration` itself."""
        return self._model

    @torch.inference_mode()
    def features(self, image: Patches) -> Features:
        """What the reference's vision tower sees; `vision_ms` is 0."""
        out = self._model.model.get_image_features(*self._pixels(image))
        deepstack = [_joined(level) for level in out.deepstack_features]
        embeds = _joined(out.pooler_output)
        return Features(
            index=image.index,
            embeds=embeds,
            deepstack=np.stack(deepstack) if deepstack else np.zeros((0, *embeds.shape), np.float32),
            grid=self._grid(image),
            width=image.width,
            height=image.height,
            sha256=image.sha256,
            read_ms=image.read_ms,
            vision_ms=0.0,
        )

    def prompt_ids(self, image: Patches, prompt: PromptTemplate) -> Int64Array:
        """[S] ids of the prompt, one image pad for each visual token."""
        pads = [self._image_pad] * math.prod(self._grid(image))
        return np.array([*prompt.prefix_ids, *pads, *prompt.suffix_ids], np.int64)

    @torch.inference_mode()
    def logits(self, image: Patches, prompt: PromptTemplate, continuation: tuple[int, ...] = ()) -> Float32Array:
        """Logits [1 + n, V] float32 after the prompt and after each token of a given continuation.

        Row 0 is the last row of the prefill; row i the one after `continuation[:i]` (teacher forcing, in one pass).
        """
        ids = torch.from_numpy(np.concatenate([self.prompt_ids(image, prompt), np.array(continuation, np.int64)]))
        inputs = self._inputs(image, ids[None])
        kept: Tensor = self._model(**inputs, logits_to_keep=1 + len(continuation), use_cache=False).logits[0]
        logits: Float32Array = kept.float().numpy()
        return logits

    @torch.inference_mode()
    def greedy(self, image: Patches, prompt: PromptTemplate, steps: int) -> Continuation:
        """The likeliest tokens after the prompt, `steps` of them, and the logits they were chosen by.

        Stop tokens do not stop it, so that every image gives the same number of steps to compare.
        """
        ids = torch.from_numpy(self.prompt_ids(image, prompt))[None]
        config = self._model.generation_config
        # What a checkpoint's own configuration leaves there (sampling, penalties, stop tokens) must not count.
        self._model.generation_config = GenerationConfig(pad_token_id=self._image_pad)
        try:
            out = self._model.generate(
                **self._inputs(image, ids),
                max_new_tokens=steps,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        finally:
            self._model.generation_config = config
        logits = torch.cat(out.logits).float().numpy()  # [n, V], before any processor
        return Continuation(tuple(out.sequences[0, ids.shape[1] :].tolist()), logits)

    @torch.inference_mode()
    def language_model(
        self, embeds: Float32Array, deepstack: Float32Array, positions: Int64Array, last: int = 1
    ) -> Float32Array:
        """The language model alone.

        Args:
            embeds: [S, H] float32.
            deepstack: [D, S, H] float32, added after the first D layers at every token.
            positions: [3, S] int64, time, row and column.
            last: how many of the last tokens to give logits of.

        Returns:
            Logits [last, V] float32.
        """
        dtype = self._model.dtype
        hidden = self._model.model.language_model(
            inputs_embeds=torch.from_numpy(embeds)[None].to(dtype),
            attention_mask=torch.ones((1, len(embeds)), dtype=torch.int64),
            position_ids=torch.from_numpy(np.ascontiguousarray(positions))[:, None],
            visual_pos_masks=torch.ones((1, len(embeds)), dtype=torch.bool),
            deepstack_visual_embeds=[torch.from_numpy(level).to(dtype) for level in deepstack],
            use_cache=False,
        ).last_hidden_state
        logits: Float32Array = self._model.lm_head(hidden[0, -last:]).float().numpy()
        return logits

    def positions(self, prompt: PromptTemplate, grid: tuple[int, int]) -> Int64Array:
        """Positions [3, S] of a prompt with an image of so many visual tokens down and across."""
        pads = [self._image_pad] * math.prod(grid)
        ids = torch.tensor([[*prompt.prefix_ids, *pads, *prompt.suffix_ids]])
        found, _delta = self._model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self._image_pad).int(),
            image_grid_thw=torch.tensor([[1, grid[0] * self._merge, grid[1] * self._merge]]),
            attention_mask=torch.ones_like(ids),
        )
        positions: Int64Array = found[:, 0].numpy()
        return positions

    @torch.inference_mode()
    def replace_rows(self, name: str, start: int, values: Float32Array) -> None:
        """From now on a tensor has these rows from `start` on.

        Args:
            name: of a tensor of the language model, canonical; `lm_head.weight` is a tensor of its own from then on,
                the embeddings stay.
            start: the first row.
            values: [n, …] float32; rounded to bf16 where the reference is.
        """
        parameter = self._head() if name == HEAD else self._model.model.get_parameter(name)
        parameter[start : start + len(values)] = torch.tensor(values)  # mapped arrays can't be lent

    def _head(self) -> Any:  # noqa: ANN401 - a parameter of torch
        head = self._model.lm_head
        if head.weight is self._model.get_input_embeddings().weight:
            head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
        return head.weight

    def _grid(self, image: Patches) -> tuple[int, int]:
        """Visual tokens down and across."""
        return image.grid[0] // self._merge, image.grid[1] // self._merge

    def _pixels(self, image: Patches) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(image.values), torch.tensor([[1, *image.grid]])

    def _inputs(self, image: Patches, ids: Tensor) -> dict[str, Tensor]:
        pixels, grid = self._pixels(image)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._image_pad).int(),
            "pixel_values": pixels,
            "image_grid_thw": grid,
        }


def _fitting_dtype(tensors: Mapping[str, StoredTensor], wanted: ReferenceDtype) -> ReferenceDtype:
    needed = dict.fromkeys(_TORCH_DTYPES, SPARE_BYTES)
    for name, tensor in tensors.items():
        for dtype, torch_dtype in _TORCH_DTYPES.items():
            width = 4 if name.startswith(VISION) else torch_dtype.itemsize
            needed[dtype] += math.prod(tensor.shape) * width
    free = available_memory_bytes()
    chosen = wanted
    if wanted is ReferenceDtype.AUTO:
        chosen = ReferenceDtype.FP32 if needed[ReferenceDtype.FP32] <= free else ReferenceDtype.BF16
    if needed[chosen] > free:
        raise UsageError(
            f"the reference needs {needed[chosen] / GIB:.1f} GiB of memory in {chosen}, {free / GIB:.1f} GiB are free: "
            "use a machine with more"
        )
    if chosen is ReferenceDtype.BF16:
        log.warning("the reference runs in bf16, which rounds to 3 digits: in fp32 it would not fit into free memory")
    return chosen


def _joined(values: Any) -> Float32Array:  # noqa: ANN401 - as transformers gives it
    """One image's features; transformers gives them as a tensor or as one tensor an image."""
    tensor: Tensor = values if isinstance(values, Tensor) else torch.cat(list(values))
    joined: Float32Array = tensor.float().numpy().copy()
    return joined
