"""Owns what a decoder is made for, what it is asked, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass

from batchcap.core.prompts import Sampling
from batchcap.core.records import Features, FinishReason
from batchcap.decoder.prompt_inputs import PromptSet, needs_shared_slot, slot_positions
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate


@dataclass(frozen=True, slots=True)
class DecoderPlacement:
    """How large a decoder is; never changes a caption."""

    slots: int
    threads: int
    max_visual_tokens: int


@dataclass(frozen=True, slots=True)
class SlotShape:
    """What a slot is made for; never changes a caption. Requests that need more are refused.

    Attributes:
        positions: tokens of the longest prompt, image and caption together.
        with_logits: whether tokens may be chosen otherwise than by the arg-max inside the graph.
        with_prefix_slot: whether there is one more slot, for what several prompts of an image begin with.
    """

    positions: int
    with_logits: bool = False
    with_prefix_slot: bool = False

    @classmethod
    def of(
        cls, bundle: Bundle, prompts: Sequence[PromptTemplate], sampling: Sampling, max_visual_tokens: int
    ) -> "SlotShape":
        """Slots for requests of these prompts.

        Raises:
            UsageError: prompt, image and caption together need more positions than the bundle has.
        """
        return cls(
            positions=max(slot_positions(bundle, one, sampling, max_visual_tokens) for one in prompts),
            with_logits=sampling.needs_logits,
            with_prefix_slot=needs_shared_slot(prompts),
        )


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """What is asked about one image.

    Attributes:
        row_id: the row's id, which its random draws depend on.
        features: what the encoder saw.
        prompts: what is asked.
        sampling: how tokens are chosen.
    """

    row_id: str
    features: Features
    prompts: PromptSet
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class WrittenTokens:
    """What the decoder wrote for one image and one prompt.

    Attributes:
        index: the row's `ImageRow.index`.
        prompt: which of the request's prompts it answers, from 0.
        token_ids: new tokens without the stop token.
        finish_reason: why decoding ended.
        tokens_before_repeats: tokens up to the end of the first cycle of an endless repetition; None: there is none.
        prompt_tokens: tokens of the prompt, visual tokens included.
        visual_tokens: tokens of the image.
        prefill_ms: time of its prefill.
        decode_ms: from the end of the prefill to the last token.
    """

    index: int
    prompt: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    tokens_before_repeats: int | None
    prompt_tokens: int
    visual_tokens: int
    prefill_ms: float
    decode_ms: float
