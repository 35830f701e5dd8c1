"""Owns the decoder's ONNX Runtime session: its options, and running it on memory that is bound, not copied."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from batchcap.core.errors import BundleError, load_error
from batchcap.core.records import Float32Array, Int64Array
from batchcap.model.geometry import Geometry
from batchcap.model.onnx_signature import FLOAT, INT64, Shape, require_values


@dataclass(frozen=True, slots=True)
class DecoderInputs:
    """What one run reads, beside the key-value cache.

    Attributes:
        embeds: [B, S, H] float32.
        mask: [B, M] int64; the sum of a row is its length after this run.
        positions: [3, B, S] int64.
        deepstack: one [B or 1, S or 1, H] float32 for each DeepStack level.
    """

    embeds: Float32Array
    mask: Int64Array
    positions: Int64Array
    deepstack: tuple[Float32Array, ...]


@dataclass(frozen=True, slots=True)
class DecoderOutputs:
    """Where one run writes. `logits` is None where the arg-max is enough: 151,936 numbers a row are not copied then."""

    next_token: Int64Array  # [B, 1]
    logits: Float32Array | None  # [B, 1, V]

    @classmethod
    def allocate(cls, rows: int, vocab_size: int | None) -> "DecoderOutputs":
        """Room for a run of `rows` rows; with `vocab_size`, for the logits too."""
        logits = None if vocab_size is None else np.empty((rows, 1, vocab_size), np.float32)
        return cls(np.empty((rows, 1), np.int64), logits)

    def first(self, rows: int) -> "DecoderOutputs":
        """The room of the first `rows` rows; the same memory."""
        return DecoderOutputs(self.next_token[:rows], None if self.logits is None else self.logits[:rows])


class DecoderSession:
    """The decoder's graph, ready to run.

    Args:
        graph: the ONNX file; its weights lie beside it.
        geometry: the model's shape.
        threads: threads of one run; never changes a number.
        packed: the file was written by `save_packed`: nothing is left to optimize in the graph, and the weights are
            mapped as the kernels want them.
        save_packed: where to write such a file; its weights lie beside it.

    Raises:
        BundleError: ONNX Runtime can't load the graph, or can't save it; or it is of another geometry.
    """

    def __init__(
        self, graph: Path, geometry: Geometry, threads: int, *, packed: bool = False, save_packed: Path | None = None
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Prompts come in many lengths: plans for each shape, and freed memory kept for the next, would only pile up.
        # Measured on 2B: 45 MiB less without them, and no step slower.
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        # Waiting threads would take the cores from the vision encoder and the other decoders.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if packed:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if save_packed is not None:
            options.optimized_model_filepath = str(save_packed)
            weights_name = f"{save_packed.name}.data"
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights_name)
            options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own exceptions share no base
            if save_packed is not None:
                raise BundleError(f"ONNX Runtime can't pack {graph} into {save_packed.parent} ({error})") from None
            raise load_error(f"ONNX Runtime can't load {graph}", error) from None
        self._run_options = onnxruntime.RunOptions()
        # Nothing is scaled for logits that no one asks for: 10 MB for 16 rows of the real vocabulary.
        self._run_options.only_execute_path_to_fetches = True
        text = geometry.text
        require_values(self._session, graph, _inputs(geometry), _outputs(geometry))
        self._cache_names = [f"{layer}.{kind}" for layer in range(text.layers) for kind in ("key", "value")]

    def bind(self, inputs: DecoderInputs, outputs: DecoderOutputs, cache: list[NDArray[Any]]) -> "BoundRun":
        """Tie arrays to the graph's inputs and outputs; what they hold may change between runs, their place may not.

        Args:
            inputs: as described there.
            outputs: as described there.
            cache: keys and values of each layer in turn, each [B, kv_heads, M, head_dim] float32 and contiguous. Past
                and present are the same memory, so a run writes in place and copies nothing.
        """
        binding = self._session.io_binding()
        named: dict[str, NDArray[Any]] = {
            "inputs_embeds": inputs.embeds,
            "attention_mask": inputs.mask,
            "position_ids": inputs.positions,
        }
        named |= {f"deepstack_embeds.{index}": level for index, level in enumerate(inputs.deepstack)}
        for name, array in named.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in zip(self._cache_names, cache, strict=True):
            buffer = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *buffer)
            binding.bind_output(f"present.{name}", *buffer)
        for name, target in (("next_token", outputs.next_token), ("logits", outputs.logits)):
            if target is not None:
                binding.bind_output(name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
        return BoundRun(self._session, binding, self._run_options, inputs, outputs)


def _inputs(geometry: Geometry) -> dict[str, tuple[str, Shape]]:
    hidden, level_count = geometry.text.hidden_size, len(geometry.vision.deepstack_levels)
    return {
        "inputs_embeds": (FLOAT, (None, None, hidden)),
        "attention_mask": (INT64, (None, None)),
        "position_ids": (INT64, (3, None, None)),
        **{f"deepstack_embeds.{level}": (FLOAT, (None, None, hidden)) for level in range(level_count)},
        **_cache_values(geometry, "past_key_values"),
    }


def _outputs(geometry: Geometry) -> dict[str, tuple[str, Shape]]:
    return {
        "next_token": (INT64, (None, 1)),
        "logits": (FLOAT, (None, 1, geometry.text.vocab_size)),
        **_cache_values(geometry, "present"),
    }


def _cache_values(geometry: Geometry, prefix: str) -> dict[str, tuple[str, Shape]]:
    text = geometry.text
    shape = (None, text.kv_heads, None, text.head_dim)
    return {f"{prefix}.{layer}.{kind}": (FLOAT, shape) for layer in range(text.layers) for kind in ("key", "value")}


@dataclass(frozen=True, slots=True)
class BoundRun:
    """A run that can be repeated; holds the arrays, since the binding knows only their addresses."""

    _session: onnxruntime.InferenceSession
    _binding: onnxruntime.IOBinding
    _options: onnxruntime.RunOptions
    inputs: DecoderInputs
    outputs: DecoderOutputs

    def run(self) -> DecoderOutputs:
        """Run the graph once."""
        self._session.run_with_iobinding(self._binding, self._options)
        return self.outputs
