"""Owns the vision stage without PyTorch: the bundle's vision graph in ONNX Runtime.

Every image goes through the graph alone, so its features cannot depend on its neighbours.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from batchcap.config import VisionConfig, VisionDtype
from batchcap.core.errors import BundleError, CheckpointError, load_error
from batchcap.core.machine import session_threads
from batchcap.core.records import Features, Float32Array, Patches
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import VisionGeometry
from batchcap.model.onnx_signature import FLOAT, Shape, require_values
from batchcap.model.tensors import read_file
from batchcap.vision.dtype import resolve_dtype
from batchcap.vision.features import features_of, read_rotary_table
from batchcap.vision.positions import PositionEmbeddings
from batchcap.vision.rope import RotaryTable

POSITION_WEIGHT = "pos_embed.weight"


class OnnxVisionEncoder:
    """The vision tower of a bundle in ONNX Runtime, ready to run; `backend.load_encoder` makes it.

    Args:
        bundle: where geometry, graph and weights come from.
        config: arithmetic to use.
        threads: threads of ONNX Runtime in this process, callers among them; never changes a feature.
        lanes: the most calls of `encode` at once, at most as many as threads.

    Raises:
        BundleError: the graph or the weights are missing, broken, or not of the bundle's geometry.
    """

    def __init__(self, bundle: Bundle, config: VisionConfig, threads: int, lanes: int = 1) -> None:
        geometry = bundle.geometry.vision
        self.dtype = resolve_dtype(config)
        path = bundle.vision_graph_path(int8=self.dtype is VisionDtype.INT8)
        self._session = _session(path, session_threads(threads, lanes))
        require_values(self._session, path, *_values(geometry))
        self._outputs = ["embeds", *(f"deepstack.{level}" for level in range(len(geometry.deepstack_levels)))]
        self._rotary = RotaryTable(read_rotary_table(bundle), geometry.merge_size)
        self._positions = PositionEmbeddings(_position_table(bundle), geometry.merge_size)
        self._merge = geometry.merge_size

    def encode(self, batch: Sequence[Patches], lanes: int = 1) -> list[Features]:
        """Encode images, one after the other; see `Encoder.encode`."""
        started_s = time.perf_counter()
        arrays = [self._encode(image) for image in batch]
        return features_of(batch, arrays, self._merge, (time.perf_counter() - started_s) * 1000 / lanes)

    def _encode(self, image: Patches) -> Float32Array:
        """[1 + L, T, H] of one image, the embeddings and each DeepStack level."""
        cos, sin = self._rotary.for_grid(image.grid)
        positions = self._positions.for_grid(image.grid)
        feed = {"patches": image.values, "positions": positions, "cos": cos, "sin": sin}
        outputs = self._session.run(self._outputs, {name: array[None] for name, array in feed.items()})
        array: Float32Array = np.concatenate(outputs)
        return array


def _values(geometry: VisionGeometry) -> tuple[dict[str, tuple[str, Shape]], dict[str, tuple[str, Shape]]]:
    """Inputs and outputs of the graph."""
    turns = (None, None, geometry.head_dim // 2)
    inputs = {"patches": (None, None, geometry.patch_values), "positions": (None, None, geometry.hidden_size)}
    levels = [f"deepstack.{level}" for level in range(len(geometry.deepstack_levels))]
    outputs = dict.fromkeys(["embeds", *levels], (None, None, geometry.out_hidden_size))
    return (
        {name: (FLOAT, shape) for name, shape in {**inputs, "cos": turns, "sin": turns}.items()},
        {name: (FLOAT, shape) for name, shape in outputs.items()},
    )


def _session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # decoders share the cores
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - the runtime raises its own kinds for every fault of a file
        raise load_error(f"the vision graph {graph} can't be loaded", error) from None


def _position_table(bundle: Bundle) -> Float32Array:
    """The learned position embeddings [side², D] as float32."""
    geometry = bundle.geometry.vision
    try:
        tensor = read_file(bundle.vision_weights_path)[POSITION_WEIGHT]
    except KeyError:
        tensor = None
    except CheckpointError as error:
        raise BundleError(f"the vision weights are damaged: {error}") from None
    if tensor is None or tensor.shape != (geometry.position_side**2, geometry.hidden_size):
        raise BundleError(
            f"{bundle.vision_weights_path} has no {POSITION_WEIGHT} of the bundle's shape: export the bundle again"
        )
    return tensor.rows(0, tensor.shape[0])
