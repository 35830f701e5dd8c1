"""Owns the vision stage: patches of one or more images in, features for the decoder out.

An image's features are equal bit for bit alone, packed with any others in any order, and for any number of
threads: attention stays inside an image, norms inside a row, and linear layers run as `RowBlockLinear`.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from batchcap.config import VisionConfig, VisionDtype
from batchcap.core.records import Features, Float32Array, Patches
from batchcap.model.bundle import Bundle
from batchcap.vision.dtype import resolve_dtype
from batchcap.vision.features import features_of, read_rotary_table
from batchcap.vision.linear import pack_linears, threads_of_a_pass
from batchcap.vision.positions import PositionEmbeddings
from batchcap.vision.rope import RotaryTable
from batchcap.vision.tower import load_tower

TORCH_DTYPES = {VisionDtype.BF16: torch.bfloat16, VisionDtype.FP32: torch.float32}


class VisionEncoder:
    """The vision tower of a bundle in PyTorch, ready to run; `backend.load_encoder` makes it.

    Args:
        bundle: where geometry and weights come from.
        config: arithmetic to use.
        threads: threads of PyTorch in this process; never changes a feature.

    Raises:
        BundleError: the weights are missing, broken, or not of the bundle's geometry.
    """

    def __init__(self, bundle: Bundle, config: VisionConfig, threads: int) -> None:
        torch.set_num_threads(threads)
        geometry = bundle.geometry.vision
        self.dtype = resolve_dtype(config)
        self._torch_dtype = TORCH_DTYPES[self.dtype]
        self._tower, table = load_tower(geometry, bundle.vision_weights_path, self._torch_dtype)
        pack_linears(self._tower)
        self._rotary = RotaryTable(read_rotary_table(bundle), geometry.merge_size)
        self._positions = PositionEmbeddings(table.float().numpy(), geometry.merge_size)
        self._merge = geometry.merge_size
        self._threads = threads_of_a_pass(self._torch_dtype, threads)

    def encode(self, batch: Sequence[Patches], lanes: int = 1) -> list[Features]:
        """Encode images in one pass; see `Encoder.encode`."""
        started_s = time.perf_counter()
        _use_threads(max(1, self._threads // lanes))
        arrays = self._pass(batch)
        return features_of(batch, arrays, self._merge, (time.perf_counter() - started_s) * 1000 / lanes)

    @torch.inference_mode()
    def _pass(self, batch: Sequence[Patches]) -> list[Float32Array]:
        """[1 + L, T, H] of each image, the embeddings and each DeepStack level."""
        lengths = [len(image.values) for image in batch]
        outputs = torch.stack(self._tower(*self._inputs(batch), lengths)).float()  # [1 + L, T of all, H]
        parts = torch.split(outputs, [length // self._merge**2 for length in lengths], dim=1)
        return [part.numpy().copy() for part in parts]

    def _inputs(self, batch: Sequence[Patches]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches [N, K], positions [N, D], cosines and sines [N, a / 2] of all images, one after the other."""
        patches = torch.cat([torch.from_numpy(image.values) for image in batch]).to(self._torch_dtype)
        positions = torch.cat([torch.from_numpy(self._positions.for_grid(image.grid)) for image in batch])
        cos, sin = (
            torch.cat([torch.from_numpy(half) for half in halves])
            for halves in zip(*(self._rotary.for_grid(image.grid) for image in batch), strict=True)
        )
        return patches, positions.to(self._torch_dtype), cos, sin


def _use_threads(count: int) -> None:
    """Set how many threads the calling one's passes use: PyTorch keeps that number for each thread.

    One that was never asked for its number takes over what any thread has set last, at its next operation.
    """
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
