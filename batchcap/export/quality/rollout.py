"""Owns plain runs of a decoder over a few prompts: greedy, or along given tokens with the logits before each of them.

Letters used for shapes: S tokens of a prompt, n new tokens, H hidden size, D DeepStack levels, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from batchcap.core.records import Features, Float32Array, Int64Array
from batchcap.decoder.positions import prompt_positions
from batchcap.decoder.session import DecoderOutputs, DecoderSession
from batchcap.decoder.slots import Slots
from batchcap.model.bundle import EmbeddingTable
from batchcap.model.geometry import Geometry
from batchcap.model.prompt import PromptTemplate

ROWS = 8  # captions at once
_TIMED_PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A prompt with an image as the decoder reads it.

    Attributes:
        embeds: [S, H] float32.
        deepstack: [D, S, H] float32, the DeepStack features, zero at text tokens.
        positions: [3, S] int64.
        next_position: that of the first new token.
        prefix: tokens before the image.
        visual: tokens of the image.
    """

    embeds: Float32Array
    deepstack: Float32Array
    positions: Int64Array
    next_position: int
    prefix: int
    visual: int

    @classmethod
    def of(cls, features: Features, prompt: PromptTemplate, table: EmbeddingTable) -> "ImagePrompt":
        """The prompt about one image."""
        prefix, suffix = (table.lookup(np.array(ids, np.int64)) for ids in (prompt.prefix_ids, prompt.suffix_ids))
        visual = len(features.embeds)
        positions, next_position = prompt_positions(len(prefix), features.grid, len(suffix))
        embeds = np.concatenate([prefix, features.embeds, suffix])
        deepstack = np.zeros((len(features.deepstack), *embeds.shape), np.float32)
        deepstack[:, len(prefix) : len(prefix) + visual] = features.deepstack
        return cls(embeds, deepstack, positions, next_position, len(prefix), visual)

    def continued(self, token_ids: Sequence[int], table: EmbeddingTable) -> "ImagePrompt":
        """The prompt and an answer to it; `next_position` is the one after the answer."""
        count = len(token_ids)
        embeds = np.concatenate([self.embeds, table.lookup(np.array(token_ids, np.int64))])
        deepstack = np.pad(self.deepstack, ((0, 0), (0, count), (0, 0)))
        new = np.broadcast_to(np.arange(self.next_position, self.next_position + count), (3, count))
        positions: Int64Array = np.concatenate([self.positions, new], axis=1)
        return ImagePrompt(embeds, deepstack, positions, self.next_position + count, self.prefix, self.visual)


@dataclass(slots=True)
class _Row:
    """A prompt at work: what it has to say, or None where it says what is likeliest, and what it has said."""

    prompt: ImagePrompt
    given: tuple[int, ...] | None
    done: list[int] = field(default_factory=list)
    logits: list[Float32Array] = field(default_factory=list)
    ended: bool = False


class Rollout:
    """A decoder of `export`, run over a few prompts at once.

    Args:
        graph: the ONNX file.
        geometry: the model's shape.
        table: its token embeddings.
        threads: threads of one run.
    """

    def __init__(self, graph: Path, geometry: Geometry, table: EmbeddingTable, threads: int) -> None:
        self._session = DecoderSession(graph, geometry, threads)
        self._geometry = geometry
        self._table = table

    def greedy(self, prompts: Sequence[ImagePrompt], steps: int) -> list[tuple[int, ...]]:
        """The likeliest tokens after each prompt, up to `steps` or to a stop token, which is left out."""
        rows = [_Row(prompt, None) for prompt in prompts]
        for start in range(0, len(rows), ROWS):
            self._roll(rows[start : start + ROWS], steps)
        return [tuple(row.done) for row in rows]

    def forced(self, prompts: Sequence[ImagePrompt], token_ids: Sequence[tuple[int, ...]]) -> Iterator[Float32Array]:
        """For each prompt the logits [n, V] before each of its n given tokens; n is at least 1."""
        for start in range(0, len(prompts), ROWS):
            group = slice(start, start + ROWS)
            rows = [_Row(prompt, given) for prompt, given in zip(prompts[group], token_ids[group], strict=True)]
            self._roll(rows, max(map(len, token_ids[group])))
            yield from (np.stack(row.logits) for row in rows)

    def _roll(self, rows: list[_Row], steps: int) -> None:
        """Let up to `ROWS` prompts go on together, each to its end or for `steps` tokens."""
        with_logits = any(row.given is not None for row in rows)
        positions = max(len(row.prompt.embeds) for row in rows) + steps
        slots = Slots(self._session, self._geometry, ROWS, positions, with_logits=with_logits)
        for number, row in enumerate(rows):
            prompt = row.prompt
            self._accept(row, slots.prefill(number, prompt.embeds, prompt.positions, prompt.deepstack), 0)
        for _step in range(1, steps):
            tokens, lengths, positions_now = (np.zeros(ROWS, np.int64) for _array in range(3))
            for number, row in enumerate(rows):
                if row.ended:
                    slots.release(number)
                    continue
                tokens[number] = row.done[-1]
                lengths[number] = len(row.prompt.embeds) + len(row.done) - 1
                positions_now[number] = row.prompt.next_position + len(row.done) - 1
            if not lengths.any():
                return
            outputs = slots.step(ROWS, lengths, positions_now, self._table.lookup(tokens))
            for number, row in enumerate(rows):
                if not row.ended:
                    self._accept(row, outputs, number)

    def _accept(self, row: _Row, outputs: DecoderOutputs, index: int) -> None:
        """Take in a row's next token, and the logits before it where it was given."""
        token = int(outputs.next_token[index, 0])
        if row.given is not None and outputs.logits is not None:
            row.logits.append(outputs.logits[index, 0].copy())
            token = row.given[len(row.done)]
        elif token in self._geometry.tokens.stop:
            row.ended = True
            return
        row.done.append(token)
        row.ended = row.given is not None and len(row.done) == len(row.given)

    def step_s(self, steps: int) -> float:
        """Median time of a decode step of `ROWS` rows as a job runs it, without logits."""
        text = self._geometry.text
        slots = Slots(self._session, self._geometry, ROWS, _TIMED_PROMPT_TOKENS + steps, with_logits=False)
        embeds = np.ones((_TIMED_PROMPT_TOKENS, text.hidden_size), np.float32)
        deepstack = np.zeros((len(self._geometry.vision.deepstack_levels), *embeds.shape), np.float32)
        positions = np.broadcast_to(np.arange(_TIMED_PROMPT_TOKENS), (3, _TIMED_PROMPT_TOKENS)).astype(np.int64)
        for row in range(ROWS):
            slots.prefill(row, embeds, positions, deepstack)
        times = []
        for step in range(steps):
            index = np.full(ROWS, _TIMED_PROMPT_TOKENS + step, np.int64)
            started = time.perf_counter()
            slots.step(ROWS, index, index, embeds[:ROWS])
            times.append(time.perf_counter() - started)
        return float(np.median(times))
