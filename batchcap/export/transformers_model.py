"""Owns the loading of a checkpoint into transformers: from the tensors and the configuration that an export reads.

So the reference of a check is the model that was exported, also where transformers would name its files or tensors
otherwise; what it does not find it fills with random numbers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.model.tensors import HEAD, StoredTensor

_BITS = {2: np.int16, 4: np.int32}
_TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:  # noqa: ANN401 - transformers' annotations don't fit
    """A `Qwen3VLForConditionalGeneration` with a checkpoint's weights in `dtype`, for inference.

    Args:
        checkpoint: one that was not quantized before.
        dtype: of all parameters.
    """
    state = {name if name == HEAD else f"model.{name}": _mapped(tensor) for name, tensor in checkpoint.tensors.items()}
    config = Qwen3VLConfig.from_dict(checkpoint.config)
    model = Qwen3VLForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    return model.eval().requires_grad_(requires_grad=False)


def _mapped(tensor: StoredTensor) -> Tensor:
    """A tensor as a private map of its file: it takes memory where it is written only."""
    dtype = _TORCH_TYPES[tensor.dtype]
    bits = np.memmap(tensor.path, _BITS[dtype.itemsize], "c", tensor.start, tensor.shape)
    return torch.from_numpy(bits).view(dtype)
