"""Owns the key-value slots: where each caption's attention memory lies, and the two kinds of run over it.

Letters: B slots, S tokens of a prompt, H hidden size, M positions of a slot, V vocabulary.
"""

import numpy as np

from batchcap.core.records import Float32Array, Int64Array
from batchcap.decoder.kv_memory import SlotMemory
from batchcap.decoder.session import BoundRun, DecoderInputs, DecoderOutputs, DecoderSession
from batchcap.model.geometry import Geometry, TextGeometry

_FLOAT_BYTES = 4


def kv_bytes_per_slot(text: TextGeometry, positions: int) -> int:
    """Bytes that one slot of so many positions takes: keys and values of every layer in float32."""
    return 2 * text.layers * text.kv_heads * positions * text.head_dim * _FLOAT_BYTES


class Slots:
    """A fixed number of slots over one session.

    A slot is contiguous in every layer's [B, kv_heads, M, head_dim], so a prompt is prefilled straight into its slot,
    and a decode step runs over the first slots together: neither copies anything. Rows may differ in length; a row's
    length is the sum of its row of the mask.

    Args:
        session: the decoder's graph.
        geometry: the model's shape.
        count: slots.
        positions: positions of a slot.
        with_logits: whether runs give the logits beside the arg-max.
        with_prefix_slot: whether there is one more slot, `prefix_slot`, for a prefix that rows share; no step uses it.
    """

    def __init__(
        self,
        session: DecoderSession,
        geometry: Geometry,
        count: int,
        positions: int,
        *,
        with_logits: bool,
        with_prefix_slot: bool = False,
    ) -> None:
        text = geometry.text
        self.count = count
        self.positions = positions
        self.prefix_slot = count  # behind all others
        self._session = session
        self._level_count = len(geometry.vision.deepstack_levels)
        self._vocab_size = text.vocab_size if with_logits else None
        shape = (count + with_prefix_slot, text.kv_heads, positions, text.head_dim)
        self._memory = SlotMemory(shape, 2 * text.layers)
        self._cache = self._memory.arrays
        self._written = [False] * shape[0]
        self._embeds = np.zeros((count, 1, text.hidden_size), np.float32)
        # An idle slot keeps one position: its row is computed beside the others, and means nothing.
        self._mask = np.zeros((count + with_prefix_slot, positions), np.int64)
        self._mask[:, 0] = 1
        # DeepStack adds nothing to new tokens: one row of zeros is broadcast.
        self._no_deepstack = tuple(
            np.zeros((1, 1, text.hidden_size), np.float32) for _level in range(self._level_count)
        )
        # Batches of all sizes write to the same place: the logits of 16 rows of the real vocabulary take 10 MB.
        self._outputs = DecoderOutputs.allocate(count, self._vocab_size)
        self._steps: dict[int, BoundRun] = {}

    def prefill(
        self, slot: int, embeds: Float32Array, positions: Int64Array, deepstack: Float32Array, past: int = 0
    ) -> DecoderOutputs:
        """Fill a slot with a prompt, or with the rest of one.

        Args:
            slot: which one.
            embeds: [S, H] float32.
            positions: [3, S] int64.
            deepstack: [D, S, H] float32, the DeepStack features, zero at text tokens.
            past: tokens of the prompt that the slot holds already, S follow.

        Returns:
            The outputs of one row, for the token after the prompt.

        Raises:
            ValueError: the prompt is longer than a slot; ONNX Runtime would write past its end.
        """
        length = past + len(embeds)
        if length > self.positions:
            raise ValueError(f"a prompt of {length} tokens does not fit into a slot of {self.positions} positions")
        inputs = DecoderInputs(
            embeds=np.ascontiguousarray(embeds[None]),
            mask=np.ones((1, length), np.int64),
            positions=np.ascontiguousarray(positions[:, None]),
            deepstack=tuple(np.ascontiguousarray(level[None]) for level in deepstack),
        )
        self._written[slot] = True
        cache = [array[slot : slot + 1] for array in self._cache]
        outputs = self._session.bind(inputs, DecoderOutputs.allocate(1, self._vocab_size), cache).run()
        self._mask[slot] = 0
        self._mask[slot, :length] = 1
        return outputs

    def step(self, rows: int, lengths: Int64Array, positions: Int64Array, embeds: Float32Array) -> DecoderOutputs:
        """One decode step over the first `rows` slots.

        Args:
            rows: slots that take part, idle ones among them.
            lengths: [rows] tokens in each slot before this step; 0 for an idle slot.
            positions: [rows] position of each new token, the same in all three rows of mRoPE.
            embeds: [rows, H] float32 embeddings of the new tokens.

        Returns:
            Outputs whose rows are the slots; overwritten by the next step.
        """
        bound = self._steps.get(rows)
        if bound is None:
            bound = self._steps[rows] = self._bind_step(rows)
        self._mask[np.arange(rows), lengths] = 1
        self._embeds[:rows, 0] = embeds
        bound.inputs.positions[:, :, 0] = positions
        return bound.run()

    def release(self, slot: int) -> None:
        """Make a slot idle; its memory stays, for the row that fills it next."""
        self._mask[slot] = 0
        self._mask[slot, 0] = 1

    def give_back(self, slot: int) -> None:
        """Give an idle slot's memory back, which no row needs for now."""
        if self._written[slot]:
            self._written[slot] = False
            self._memory.give_back(slot)

    def move(self, source: int, target: int) -> None:
        """Move a row to an idle slot; copies the keys and values it has so far."""
        self.copy(source, target, int(self._mask[source].sum()))
        self._mask[target] = self._mask[source]
        self.release(source)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the keys and values of a slot's first tokens; the target is then ready for a prefill of what follows."""
        self._written[target] = True
        for array in self._cache:
            array[target, :, :length] = array[source, :, :length]

    def _bind_step(self, rows: int) -> BoundRun:
        inputs = DecoderInputs(
            embeds=self._embeds[:rows],
            mask=self._mask[:rows],
            positions=np.zeros((3, rows, 1), np.int64),
            deepstack=self._no_deepstack,
        )
        return self._session.bind(inputs, self._outputs.first(rows), [array[:rows] for array in self._cache])
