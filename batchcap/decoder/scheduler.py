"""Owns continuous batching: which rows are in the slots, what each has written, when it is finished."""

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from batchcap.core.prompts import Sampling
from batchcap.core.records import FinishReason, Float32Array
from batchcap.decoder.load import OpenedDecoder, open_decoder
from batchcap.decoder.loops import LoopDetector
from batchcap.decoder.requests import DecodeRequest, DecoderPlacement, SlotShape, WrittenTokens
from batchcap.decoder.sampling import Sampler
from batchcap.decoder.session import DecoderOutputs
from batchcap.decoder.slots import Slots
from batchcap.model.bundle import Bundle


@dataclass(slots=True)
class _Image:
    """The last image taken in, whose prompts get slots one after the other.

    Attributes:
        request: what is asked about it.
        shared: tokens of each of its prompts that are in the shared slot.
        shared_ms: what these took and no caption has been told of yet.
        waiting: prompts that have no slot yet.
    """

    request: DecodeRequest
    shared: int
    shared_ms: float
    waiting: deque[int]


@dataclass(slots=True)
class _Sequence:
    """A caption at work."""

    index: int
    prompt: int
    sampling: Sampling
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


class ContinuousBatcher:
    """Writes the tokens of captions for features, as many captions at a time as there are slots.

    With several prompts, what they begin with, the image above all, is prefilled once into a slot of its own; each
    prompt gets a copy of it and prefills the rest.

    Args:
        bundle: the model.
        placement: slots and threads.
        shape: what a slot is made for.
        opened: the bundle's decoder; None: it is loaded here.

    Raises:
        BundleError: the bundle can't be used.
    """

    def __init__(
        self, bundle: Bundle, placement: DecoderPlacement, shape: SlotShape, opened: OpenedDecoder | None = None
    ) -> None:
        geometry = bundle.geometry
        opened = opened or open_decoder(bundle, placement.threads)
        session, self._tile = opened.session, opened.batch_multiple
        count = _rounded_up(placement.slots, self._tile)
        self._shape = shape
        self._slots = Slots(
            session,
            geometry,
            count,
            shape.positions,
            with_logits=shape.with_logits,
            with_prefix_slot=shape.with_prefix_slot,
        )
        self._max_visual_tokens = placement.max_visual_tokens
        self._stop = frozenset(geometry.tokens.stop)
        self._image_pad = geometry.tokens.image_pad
        self._table = bundle.embeddings()
        # Slots added by the rounding stay idle: they cost nothing but the rows of a step.
        self._rows: list[_Sequence | None] = [None] * placement.slots
        self._image: _Image | None = None

    @property
    def free_slots(self) -> int:
        """Slots that can take a new image: none while prompts of the last one wait."""
        return 0 if self._image else self._rows.count(None)

    @property
    def can_go_on(self) -> bool:
        """Whether a prompt of the last image waits and a slot is free for it."""
        return self._image is not None and None in self._rows

    @property
    def active(self) -> int:
        """Captions at work, and prompts that wait for a slot."""
        return self._at_work + (len(self._image.waiting) if self._image else 0)

    @property
    def _at_work(self) -> int:
        return len(self._rows) - self._rows.count(None)

    def add_request(self, request: DecodeRequest) -> None:
        """Take in an image; its prompts are prefilled into the lowest free slots, and wait where there are too few.

        Raises:
            ValueError: no slot is free, or the request needs more than the slots were made for.
        """
        self._require_fit(request)
        if not self.free_slots:
            raise ValueError("no slot is free: a row can be admitted after a step that finishes one")
        started_s = time.perf_counter()
        shared = 0
        if self._shape.with_prefix_slot:
            shared = request.prompts.shared_tokens(len(request.features.embeds), self._tile)
        if shared:
            whole = request.prompts.compose(request.features, 0)
            self._slots.prefill(
                self._slots.prefix_slot, whole.embeds[:shared], whole.positions[:, :shared], whole.deepstack[:, :shared]
            )
        shared_ms = (time.perf_counter() - started_s) * 1000
        self._image = _Image(request, shared, shared_ms, deque(range(len(request.prompts))))
        self.prefill_pending()

    def _require_fit(self, request: DecodeRequest) -> None:
        visual = len(request.features.embeds)
        if visual > self._max_visual_tokens:
            raise ValueError(f"{visual} visual tokens, where at most {self._max_visual_tokens} were planned")
        needed = request.prompts.text_tokens + visual + request.sampling.max_new_tokens
        if needed > self._shape.positions:
            raise ValueError(f"prompt, image and caption need {needed} positions of {self._shape.positions} planned")
        if request.sampling.needs_logits and not self._shape.with_logits:
            raise ValueError("temperature or repetition penalty, where the arg-max inside the graph was planned")

    def prefill_pending(self) -> None:
        """Give free slots to the prompts that wait; their first tokens come from the prefill."""
        while self._image is not None and None in self._rows:
            image, slot = self._image, self._rows.index(None)
            self._rows[slot] = self._prefilled(image, image.waiting[0], slot)
            image.waiting.popleft()
            image.shared_ms = 0.0
            if not image.waiting:
                self._image = None

    def abort(self, index: int) -> None:
        """Forget a row whose prefill failed: its captions at work, and its prompts that wait."""
        if self._image is not None and self._image.request.features.index == index:
            self._image = None
        for slot, row in enumerate(self._rows):
            if row is not None and row.index == index:
                self._rows[slot] = None
                self._slots.release(slot)

    def _prefilled(self, image: _Image, prompt: int, slot: int) -> _Sequence:
        """Prefill one prompt of an image into a slot, behind what the shared slot holds of it."""
        started_s = time.perf_counter()
        request, shared = image.request, image.shared
        whole = request.prompts.compose(request.features, prompt)
        if shared:
            self._slots.copy(self._slots.prefix_slot, slot, shared)
        outputs = self._slots.prefill(
            slot, whole.embeds[shared:], whole.positions[:, shared:], whole.deepstack[:, shared:], past=shared
        )
        now_s = time.perf_counter()
        row = _Sequence(
            index=request.features.index,
            prompt=prompt,
            sampling=request.sampling,
            prompt_tokens=len(whole.embeds),
            visual_tokens=len(request.features.embeds),
            next_position=whole.next_position,
            prefill_ms=image.shared_ms + (now_s - started_s) * 1000,
            decoding_since_s=now_s,
            sampler=self._sampler(request, prompt),
        )
        self._accept(row, outputs, 0)
        return row

    def step(self) -> list[WrittenTokens]:
        """One new token for every caption at work; gives those that are finished and frees their slots."""
        self.prefill_pending()
        self._compact_slots()
        for slot, held in enumerate(self._rows):
            if held is None:  # no row waits: a job that runs out of rows, or is kept short, needs less
                self._slots.give_back(slot)
        working = [(slot, row) for slot, row in enumerate(self._rows) if row and row.finish_reason is None]
        if working:
            outputs = self._run_step(working)
            for slot, row in working:
                self._accept(row, outputs, slot)
        finished: list[WrittenTokens] = []
        for slot, held in enumerate(self._rows):
            if held and held.finish_reason is not None:
                finished.append(_written(held, held.finish_reason))
                self._rows[slot] = None
                self._slots.release(slot)
        return finished

    def _compact_slots(self) -> None:
        """Move the last rows into free slots where that makes the step smaller.

        Slots are free here only while no features wait (at the end of a job, or behind a slow encoder). Copying a row
        costs a fraction of a step, and every step after it is shorter.
        """
        while self._at_work:
            last = max(slot for slot, row in enumerate(self._rows) if row)
            if _rounded_up(last + 1, self._tile) == _rounded_up(self._at_work, self._tile):
                return
            free = self._rows.index(None)
            self._slots.move(last, free)
            self._rows[free], self._rows[last] = self._rows[last], None

    def _run_step(self, working: list[tuple[int, _Sequence]]) -> DecoderOutputs:
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

    def _sampler(self, request: DecodeRequest, prompt: int) -> Sampler | None:
        if not request.sampling.needs_logits:
            return None
        ids = request.prompts.token_ids(prompt, len(request.features.embeds), self._image_pad)
        return Sampler(request.sampling, request.row_id, ids, request.prompts.templates[prompt].name)

    def _accept(self, row: _Sequence, outputs: DecoderOutputs, index: int) -> None:
        """Take a row's next token in, and see whether it was the last."""
        if row.sampler is not None and outputs.logits is not None:
            token = row.sampler.choose(outputs.logits[index, 0], len(row.token_ids))
        else:
            token = int(outputs.next_token[index, 0])
        if token in self._stop:
            row.finish_reason = FinishReason.STOP
            return
        row.token_ids.append(token)
        row.loop.add(token)
        if row.sampling.loop_stop and row.loop.tokens_before_repeats is not None:
            row.finish_reason = FinishReason.LOOP
        elif len(row.token_ids) >= row.sampling.max_new_tokens:
            row.finish_reason = FinishReason.LENGTH


def _written(row: _Sequence, finish_reason: FinishReason) -> WrittenTokens:
    return WrittenTokens(
        index=row.index,
        prompt=row.prompt,
        token_ids=tuple(row.token_ids),
        finish_reason=finish_reason,
        tokens_before_repeats=row.loop.tokens_before_repeats,
        prompt_tokens=row.prompt_tokens,
        visual_tokens=row.visual_tokens,
        prefill_ms=row.prefill_ms,
        decode_ms=(time.perf_counter() - row.decoding_since_s) * 1000,
    )


def _rounded_up(count: int, tile: int) -> int:
    return -(-count // tile) * tile
