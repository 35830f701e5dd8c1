"""Owns the vision stage: patches of one or more pictures in, features for the decoder out.

A picture's features are equal bit for bit alone, packed with any others in any order, and for any number of
threads: attention stays inside a picture, norms inside a row, and linear layers run as `RowBlockLinear`.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batchcap.bundle import Bundle
from batchcap.config import VisionConfig, VisionDtype
from batchcap.errors import UsageError
from batchcap.records import Features, Float32Array, Patches
from batchcap.vision.dtype import resolve_dtype
from batchcap.vision.linear import pack_linears
from batchcap.vision.positions import PositionEmbeddings
from batchcap.vision.rope import RotaryTable
from batchcap.vision.tower import load_tower

TORCH_DTYPES = {VisionDtype.BF16: torch.bfloat16, VisionDtype.FP32: torch.float32}


class VisionEncoder:
    """The vision tower of a bundle, ready to run.

    Args:
        bundle: where geometry and weights come from.
        config: arithmetic to use.
        threads: threads of PyTorch in this process; never changes a feature.

    Raises:
        BundleError: the weights are missing, broken, or not of the bundle's geometry.
    """

    def __init__(self, bundle: Bundle, config: VisionConfig, threads: int) -> None:
        if threads < 1:
            raise UsageError(f"the vision encoder needs at least one thread, not {threads}")
        torch.set_num_threads(threads)
        geometry = bundle.geometry.vision
        self.dtype = resolve_dtype(config.dtype)
        self._torch_dtype = TORCH_DTYPES[self.dtype]
        self._tower, table = load_tower(geometry, bundle.vision_weights_path, self._torch_dtype)
        pack_linears(self._tower)
        self._rotary = RotaryTable(geometry.head_dim, geometry.merge_size)
        self._positions = PositionEmbeddings(table, geometry.merge_size)
        self._merge = geometry.merge_size

    @torch.inference_mode()
    def encode(self, batch: Sequence[Patches]) -> list[Features]:
        """Encode pictures in one pass.

        Args:
            batch: one or more pictures of any sizes.

        Returns:
            Their features, in the same order. `vision_ms` is the pass's time shared out by patches.

        Raises:
            FloatingPointError: a feature is not finite: no caption of it would mean anything.
        """
        started = time.perf_counter()
        lengths = [len(picture.values) for picture in batch]
        outputs = torch.stack(self._tower(*self._inputs(batch), lengths)).float()  # [1 + L, T of all, H]
        parts = torch.split(outputs, [length // self._merge**2 for length in lengths], dim=1)
        arrays: list[Float32Array] = [part.numpy().copy() for part in parts]
        if not all(np.isfinite(array).all() for array in arrays):
            raise FloatingPointError("the vision encoder gave numbers that are not finite")
        ms_per_patch = (time.perf_counter() - started) * 1000 / sum(lengths)
        return [
            self._features(picture, array, ms_per_patch * length)
            for picture, array, length in zip(batch, arrays, lengths, strict=True)
        ]

    def _inputs(self, batch: Sequence[Patches]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches [N, K], positions [N, D], cosines and sines [N, a] of all pictures, one after the other."""
        patches = torch.cat([torch.from_numpy(picture.values) for picture in batch]).to(self._torch_dtype)
        positions = torch.cat([self._positions.for_grid(picture.grid) for picture in batch])
        cos, sin = zip(*(self._rotary.for_grid(picture.grid) for picture in batch), strict=True)
        return patches, positions, torch.cat(cos), torch.cat(sin)

    def _features(self, picture: Patches, array: Float32Array, vision_ms: float) -> Features:
        return Features(
            index=picture.index,
            embeds=array[0],
            deepstack=array[1:],
            grid=(picture.grid[0] // self._merge, picture.grid[1] // self._merge),
            width=picture.width,
            height=picture.height,
            sha256=picture.sha256,
            read_ms=picture.read_ms,
            vision_ms=vision_ms,
        )
