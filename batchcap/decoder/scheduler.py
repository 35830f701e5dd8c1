"""Owns continuous batching: which rows are in the slots, what each has written, when it is finished."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from batchcap.config import GenerationConfig
from batchcap.core.errors import UsageError
from batchcap.core.records import Caption, Features, FinishReason, Float32Array, Int64Array
from batchcap.decoder.invariance import MIN_PREFILL
from batchcap.decoder.load import OpenedDecoder, open_decoder
from batchcap.decoder.positions import prompt_positions
from batchcap.decoder.sampling import Sampler
from batchcap.decoder.session import DecoderOutputs
from batchcap.decoder.slots import Slots
from batchcap.decoder.thinking import ThinkingParser
from batchcap.decoder.verdict import LoopDetector, judge
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate, load_tokenizer


@dataclass(frozen=True, slots=True)
class DecoderPlacement:
    """How large a decoder is; never changes a caption."""

    slots: int
    threads: int
    max_visual_tokens: int


@dataclass(frozen=True, slots=True)
class _PromptInputs:
    """A prompt with an image in it, S tokens.

    Attributes:
        embeds: [S, H] float32.
        positions: [3, S] int64.
        deepstack: [D, S, H] float32.
        next_position: position of the first new token.
    """

    embeds: Float32Array
    positions: Int64Array
    deepstack: Float32Array
    next_position: int


@dataclass(slots=True)
class _Image:
    """The last image taken in, whose prompts get slots one after the other.

    Attributes:
        features: what the encoder saw.
        row_id: the row's id.
        shared: tokens of each of its prompts that are in the shared slot.
        shared_ms: what these took and no caption has been told of yet.
        waiting: prompts that have no slot yet.
    """

    features: Features
    row_id: str
    shared: int
    shared_ms: float
    waiting: deque[int]


@dataclass(slots=True)
class _Sequence:
    """A caption at work."""

    index: int
    prompt: int
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
    """Writes captions for features, as many at a time as there are slots.

    With several prompts, what they begin with, the image above all, is prefilled once into a slot of its own; each
    prompt gets a copy of it and prefills the rest.

    Args:
        bundle: the model.
        prompts: what to ask about each image.
        generation: how to choose tokens.
        placement: slots and threads.
        opened: the bundle's decoder; None: it is loaded here.
        tokenizer: the bundle's; None: it is loaded here.

    Raises:
        UsageError: prompt, image and caption together need more positions than the bundle has.
        BundleError: the bundle can't be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        prompts: Sequence[PromptTemplate],
        generation: GenerationConfig,
        placement: DecoderPlacement,
        opened: OpenedDecoder | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        positions = max(slot_positions(bundle, one, generation, placement.max_visual_tokens) for one in prompts)
        geometry = bundle.geometry
        opened = opened or open_decoder(bundle, placement.threads)
        session, self._tile = opened.session, opened.batch_multiple
        count = _rounded_up(placement.slots, self._tile)
        self._prefix_len = _common_suffix(prompts)
        self._slots = Slots(
            session,
            geometry,
            count,
            positions,
            with_logits=generation.needs_logits,
            with_prefix_slot=self._prefix_len is not None,
        )
        self._max_visual_tokens = placement.max_visual_tokens
        self._prompts = tuple(prompts)
        self._generation = generation
        self._stop = frozenset(geometry.tokens.stop)
        self._image_pad = geometry.tokens.image_pad
        self._table = bundle.embeddings()
        self._prefixes = [self._table.lookup(np.array(one.prefix_ids, np.int64)) for one in prompts]
        self._suffixes = [self._table.lookup(np.array(one.suffix_ids, np.int64)) for one in prompts]
        self._answers = ThinkingParser(tokenizer or load_tokenizer(bundle), opened=prompts[0].opens_thinking)
        # Slots added by the rounding stay idle: they cost nothing but the rows of a step.
        self._rows: list[_Sequence | None] = [None] * placement.slots
        self._image: _Image | None = None

    @property
    def uses_prefix_cache(self) -> bool:
        """Whether what several prompts begin with is prefilled apart from the rest."""
        return self._prefix_len is not None

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

    def add_request(self, features: Features, row_id: str) -> None:
        """Take in an image; its prompts are prefilled into the lowest free slots, and wait where there are too few.

        Args:
            features: what the encoder saw.
            row_id: the row's id, which its random draws depend on.

        Raises:
            ValueError: no slot is free, or the image has more visual tokens than the placement allows.
        """
        visual = len(features.embeds)
        if visual > self._max_visual_tokens:
            raise ValueError(f"{visual} visual tokens, where at most {self._max_visual_tokens} were planned")
        if not self.free_slots:
            raise ValueError("no slot is free: a row can be admitted after a step that finishes one")
        started_s = time.perf_counter()
        shared = self._shared_tokens(visual)
        if shared:
            whole = self._compose(features, 0)
            self._slots.prefill(
                self._slots.prefix_slot, whole.embeds[:shared], whole.positions[:, :shared], whole.deepstack[:, :shared]
            )
        shared_ms = (time.perf_counter() - started_s) * 1000
        self._image = _Image(features, row_id, shared, shared_ms, deque(range(len(self._prompts))))
        self.prefill_pending()

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
        if self._image is not None and self._image.features.index == index:
            self._image = None
        for slot, row in enumerate(self._rows):
            if row is not None and row.index == index:
                self._rows[slot] = None
                self._slots.release(slot)

    def _prefilled(self, image: _Image, prompt: int, slot: int) -> _Sequence:
        """Prefill one prompt of an image into a slot, behind what the shared slot holds of it."""
        started_s = time.perf_counter()
        whole, shared = self._compose(image.features, prompt), image.shared
        if shared:
            self._slots.copy(self._slots.prefix_slot, slot, shared)
        outputs = self._slots.prefill(
            slot, whole.embeds[shared:], whole.positions[:, shared:], whole.deepstack[:, shared:], past=shared
        )
        now_s = time.perf_counter()
        visual = len(image.features.embeds)
        row = _Sequence(
            index=image.features.index,
            prompt=prompt,
            prompt_tokens=len(whole.embeds),
            visual_tokens=visual,
            next_position=whole.next_position,
            prefill_ms=image.shared_ms + (now_s - started_s) * 1000,
            decoding_since_s=now_s,
            sampler=self._sampler(image.row_id, visual, self._prompts[prompt]),
        )
        self._accept(row, outputs, 0)
        return row

    def _shared_tokens(self, visual: int) -> int:
        """Tokens that an image's prompts begin with alike, in whole row tiles: there a split changes no bit."""
        if self._prefix_len is None:
            return 0
        shared = len(self._prompts[0].prefix_ids) + visual + self._prefix_len
        return shared - shared % max(self._tile, MIN_PREFILL)

    def _compose(self, features: Features, prompt: int) -> _PromptInputs:
        """What the decoder reads of one prompt with an image in it."""
        prefix, suffix = self._prefixes[prompt], self._suffixes[prompt]
        positions, next_position = prompt_positions(len(prefix), features.grid, len(suffix))
        embeds = np.concatenate([prefix, features.embeds, suffix])
        deepstack = np.zeros((len(features.deepstack), *embeds.shape), np.float32)
        deepstack[:, len(prefix) : len(prefix) + len(features.embeds)] = features.deepstack
        return _PromptInputs(embeds, positions, deepstack, next_position)

    def step(self) -> list[Caption]:
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
        finished: list[Caption] = []
        for slot, held in enumerate(self._rows):
            if held and held.finish_reason is not None:
                finished.append(self._caption(held, held.finish_reason))
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

    def _sampler(self, row_id: str, visual_tokens: int, prompt: PromptTemplate) -> Sampler | None:
        if not self._generation.needs_logits:
            return None
        ids = [*prompt.prefix_ids, *[self._image_pad] * visual_tokens, *prompt.suffix_ids]
        prompt_ids: Int64Array = np.array(ids, np.int64)
        return Sampler(self._generation, row_id, prompt_ids, prompt.name)

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
        if self._generation.loop_stop and row.loop.tokens_before_repeats is not None:
            row.finish_reason = FinishReason.LOOP
        elif len(row.token_ids) >= self._generation.max_new_tokens:
            row.finish_reason = FinishReason.LENGTH

    def _caption(self, row: _Sequence, finish_reason: FinishReason) -> Caption:
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
            prompt=row.prompt,
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


def needs_shared_slot(prompts: Sequence[PromptTemplate]) -> bool:
    """Whether a decoder of these prompts has one more slot, for what the prompts of an image begin with."""
    return _common_suffix(prompts) is not None


def _common_suffix(prompts: Sequence[PromptTemplate]) -> int | None:
    """How many tokens after the image several prompts have in common; None where nothing is to be shared.

    Something is left for each of them, since its first new token comes from its own prefill.
    """
    if len(prompts) == 1 or any(one.prefix_ids != prompts[0].prefix_ids for one in prompts):
        return None
    suffixes = [one.suffix_ids for one in prompts]
    room = max(0, min(map(len, suffixes)) - MIN_PREFILL)
    differing = (index for index in range(room) if len({one[index] for one in suffixes}) > 1)
    return next(differing, room)


def _rounded_up(count: int, tile: int) -> int:
    return -(-count // tile) * tile
