"""A decoder of which every image is asked the same, and whose answers are read as captions."""

from collections.abc import Sequence
from typing import Any

from batchcap.config import GenerationConfig
from batchcap.core.records import Caption, Features
from batchcap.decoder.captions import CaptionReader
from batchcap.decoder.load import OpenedDecoder
from batchcap.decoder.prompt_inputs import PromptSet
from batchcap.decoder.requests import DecodeRequest, DecoderPlacement, SlotShape
from batchcap.decoder.scheduler import ContinuousBatcher
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate, load_tokenizer


class AskingDecoder:
    """Slots, what is asked of every image, and the reader of what they write; else a `ContinuousBatcher`."""

    def __init__(
        self,
        bundle: Bundle,
        templates: Sequence[PromptTemplate],
        generation: GenerationConfig,
        placement: DecoderPlacement,
        opened: OpenedDecoder | None = None,
    ) -> None:
        shape = SlotShape.of(bundle, templates, generation.sampling, placement.max_visual_tokens)
        self.batcher = ContinuousBatcher(bundle, placement, shape, opened)
        self.prompts = PromptSet(templates, bundle.embeddings())
        self._sampling = generation.sampling
        self._reader = CaptionReader(load_tokenizer(bundle))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batcher, name)

    def add_request(self, features: Features, row_id: str) -> None:
        self.batcher.add_request(DecodeRequest(row_id, features, self.prompts, self._sampling))

    def step(self) -> list[Caption]:
        opened = self.prompts.templates[0].opens_thinking
        return [self._reader.read(written, opens_thinking=opened) for written in self.batcher.step()]
