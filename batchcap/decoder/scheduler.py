"""Owns continuous batching: which rows are in the slots, what each has written, when it is finished."""

import time
from dataclasses import dataclass, field

import numpy as np

from batchcap.bundle import Bundle
from batchcap.config import GenerationConfig
from batchcap.decoder.answer import AnswerReader
from batchcap.decoder.invariance import find_row_tile
from batchcap.decoder.positions import prompt_positions
from batchcap.decoder.sampling import Sampler
from batchcap.decoder.session import DecoderOutputs, DecoderSession
from batchcap.decoder.slots import Slots
from batchcap.decoder.verdict import LoopDetector, judge
from batchcap.errors import UsageError
from batchcap.prompt import PromptTemplate, load_tokenizer
from batchcap.records import Caption, Features, FinishReason, Float32Array, Int64Array


@dataclass(frozen=True, slots=True)
class DecoderPlacement:
    """How large a decoder is; never changes a caption."""

    slots: int
    threads: int
    max_visual_tokens: int


@dataclass(slots=True)
class _Row:
    """A caption at work."""

    index: int
    prompt_tokens: int
    visual_tokens: int
    next_position: int
    prefill_ms: float
    decoding_since_s: float
    sampler: Sampler | None
    loop: LoopDetector = field(default_factory=LoopDetector)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def length(self) -> int:
        """Tokens in the row's slot: the prompt and all new tokens but the last, which the next step brings in."""
        return self.prompt_tokens + len(self.token_ids) - 1


class Decoder:
    """Writes captions for features, as many at a time as there are slots.

    Args:
        bundle: the model.
        prompt: what to ask about each picture.
        generation: how to choose tokens.
        placement: slots and threads.

    Raises:
        UsageError: prompt, picture and caption together need more positions than the bundle has.
        BundleError: the bundle can't be used.
    """

    def __init__(
        self, bundle: Bundle, prompt: PromptTemplate, generation: GenerationConfig, placement: DecoderPlacement
    ) -> None:
        positions = slot_positions(bundle, prompt, generation, placement.max_visual_tokens)
        geometry = bundle.geometry
        session = DecoderSession(bundle.decoder_path, geometry, placement.threads)
        self._tile = find_row_tile(session, geometry)
        count = _rounded_up(placement.slots, self._tile)
        self._slots = Slots(session, geometry, count, positions, with_logits=generation.needs_logits)
        self._max_visual_tokens = placement.max_visual_tokens
        self._prompt = prompt
        self._generation = generation
        self._stop = frozenset(geometry.tokens.stop)
        self._image_pad = geometry.tokens.image_pad
        self._table = bundle.embeddings()
        self._prefix = self._table.lookup(np.array(prompt.prefix_ids, np.int64))
        self._suffix = self._table.lookup(np.array(prompt.suffix_ids, np.int64))
        self._answers = AnswerReader(load_tokenizer(bundle), opened=prompt.opens_thinking)
        # Slots added by the rounding stay idle: they cost nothing but the rows of a step.
        self._rows: list[_Row | None] = [None] * placement.slots

    @property
    def free_slots(self) -> int:
        """Slots that can take a row."""
        return self._rows.count(None)

    @property
    def active(self) -> int:
        """Rows at work."""
        return len(self._rows) - self.free_slots

    def admit(self, features: Features, row_id: str) -> None:
        """Prefill a row into the lowest free slot; its first token comes from the prefill.

        Args:
            features: what the encoder saw.
            row_id: the row's id, which its random draws depend on.

        Raises:
            ValueError: no slot is free, or the picture has more visual tokens than the placement allows.
        """
        visual = len(features.embeds)
        if visual > self._max_visual_tokens:
            raise ValueError(f"{visual} visual tokens, where at most {self._max_visual_tokens} were planned")
        if not self.free_slots:
            raise ValueError("no slot is free: a row can be admitted after a step that finishes one")
        slot = self._rows.index(None)
        started_s = time.perf_counter()
        prefix, suffix = len(self._prompt.prefix_ids), len(self._prompt.suffix_ids)
        positions, next_position = prompt_positions(prefix, features.grid, suffix)
        embeds = np.concatenate([self._prefix, features.embeds, self._suffix])
        levels = np.zeros((len(features.deepstack), *embeds.shape), np.float32)
        levels[:, prefix : prefix + visual] = features.deepstack
        outputs = self._slots.prefill(slot, embeds, positions, levels)
        now_s = time.perf_counter()
        row = _Row(
            index=features.index,
            prompt_tokens=len(embeds),
            visual_tokens=visual,
            next_position=next_position,
            prefill_ms=(now_s - started_s) * 1000,
            decoding_since_s=now_s,
            sampler=self._sampler(row_id, visual),
        )
        self._accept(row, outputs, 0)
        self._rows[slot] = row

    def step(self) -> list[Caption]:
        """One new token for every row at work; gives the captions that are finished and frees their slots."""
        self._close_gaps()
        working = [(slot, row) for slot, row in enumerate(self._rows) if row and row.finish_reason is None]
        if working:
            outputs = self._run_step(working)
            for slot, row in working:
                self._accept(row, outputs, slot)
        finished: list[Caption] = []
        for slot, held in enumerate(self._rows):
            if held and held.finish_reason is not None:
                finished.append(self._caption(held, held.finish_reason))
                self._rows[slot] = None
                self._slots.release(slot)
        return finished

    def _close_gaps(self) -> None:
        """Move the last rows into free slots where that makes the step smaller.

        Slots are free here only while no features wait (at the end of a job, or behind a slow encoder). Copying a row
        costs a fraction of a step, and every step after it is shorter.
        """
        while self.active:
            last = max(slot for slot, row in enumerate(self._rows) if row)
            if _rounded_up(last + 1, self._tile) == _rounded_up(self.active, self._tile):
                return
            free = self._rows.index(None)
            self._slots.move(last, free)
            self._rows[free], self._rows[last] = self._rows[last], None

    def _run_step(self, working: list[tuple[int, _Row]]) -> DecoderOutputs:
        """Run the slots up to the last one at work, and as many more as the tile asks for."""
        count = _rounded_up(working[-1][0] + 1, self._tile)
        tokens = np.zeros(count, np.int64)
        lengths = np.zeros(count, np.int64)
        positions = np.zeros(count, np.int64)
        for slot, row in working:
            tokens[slot] = row.token_ids[-1]
            lengths[slot] = row.length
            positions[slot] = row.next_position
            row.next_position += 1
        embeds: Float32Array = self._table.lookup(tokens)
        return self._slots.step(count, lengths, positions, embeds)

    def _sampler(self, row_id: str, visual_tokens: int) -> Sampler | None:
        if not self._generation.needs_logits:
            return None
        ids = [*self._prompt.prefix_ids, *[self._image_pad] * visual_tokens, *self._prompt.suffix_ids]
        prompt_ids: Int64Array = np.array(ids, np.int64)
        return Sampler(self._generation, row_id, prompt_ids)

    def _accept(self, row: _Row, outputs: DecoderOutputs, place: int) -> None:
        """Take a row's next token in, and see whether it was the last."""
        if row.sampler is not None and outputs.logits is not None:
            token = row.sampler.choose(outputs.logits[place, 0], len(row.token_ids))
        else:
            token = int(outputs.next_token[place, 0])
        if token in self._stop:
            row.finish_reason = FinishReason.STOP
            return
        row.token_ids.append(token)
        row.loop.add(token)
        if self._generation.loop_stop and row.loop.tokens_before_repeats is not None:
            row.finish_reason = FinishReason.LOOP
        elif len(row.token_ids) >= self._generation.max_new_tokens:
            row.finish_reason = FinishReason.LENGTH

    def _caption(self, row: _Row, finish_reason: FinishReason) -> Caption:
        kept = row.loop.tokens_before_repeats
        told = row.token_ids[:kept] if finish_reason is FinishReason.LOOP else row.token_ids
        answer = self._answers.read(told, cut=finish_reason is not FinishReason.STOP)
        thought = answer.thinking is not None
        return Caption(
            index=row.index,
            token_ids=tuple(row.token_ids),
            text=answer.caption,
            finish_reason=finish_reason,
            verdict=judge(answer.caption, finish_reason, looping=kept is not None, thought=thought),
            prompt_tokens=row.prompt_tokens,
            visual_tokens=row.visual_tokens,
            prefill_ms=row.prefill_ms,
            decode_ms=(time.perf_counter() - row.decoding_since_s) * 1000,
            thinking=answer.thinking,
        )


def slot_positions(bundle: Bundle, prompt: PromptTemplate, generation: GenerationConfig, max_visual_tokens: int) -> int:
    """Positions a slot needs for the longest row.

    Raises:
        UsageError: more than the bundle's context.
    """
    needed = prompt.text_tokens + max_visual_tokens + generation.max_new_tokens
    if needed > bundle.context:
        raise UsageError(
            f"prompt ({prompt.text_tokens} tokens), --max-visual-tokens {max_visual_tokens} and --max-new-tokens "
            f"{generation.max_new_tokens} need {needed} positions, the bundle has {bundle.context}: lower one of them, "
            "or export with a larger --context"
        )
    return needed


def _rounded_up(count: int, tile: int) -> int:
    return -(-count // tile) * tile
