"""Owns what the decoder reads of a prompt with an image in it, and what the prompts of a request have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from batchcap.core.errors import UsageError
from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.records import Features, Float32Array, Int64Array
from batchcap.decoder.invariance import MIN_PREFILL
from batchcap.decoder.positions import prompt_positions
from batchcap.model.bundle import Bundle, EmbeddingTable
from batchcap.model.prompt import PromptTemplate

# Most jobs ask the same of every image; embeddings of a prompt take a tenth of a megabyte or two.
MAX_PROMPT_SETS = 64


@dataclass(frozen=True, slots=True)
class PromptInputs:
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


class PromptSet:
    """The prompts of a request, rendered and embedded.

    Args:
        templates: the rendered prompts, in order.
        table: the model's token embeddings.
    """

    def __init__(self, templates: Sequence[PromptTemplate], table: EmbeddingTable) -> None:
        self.templates = tuple(templates)
        self._prefixes = [table.lookup(np.array(one.prefix_ids, np.int64)) for one in self.templates]
        self._suffixes = [table.lookup(np.array(one.suffix_ids, np.int64)) for one in self.templates]
        self._common = common_suffix(self.templates)

    def __len__(self) -> int:
        return len(self.templates)

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest prompt that are not of the image."""
        return max(one.text_tokens for one in self.templates)

    def compose(self, features: Features, prompt: int) -> PromptInputs:
        """What the decoder reads of one prompt with an image in it."""
        prefix, suffix = self._prefixes[prompt], self._suffixes[prompt]
        positions, next_position = prompt_positions(len(prefix), features.grid, len(suffix))
        embeds = np.concatenate([prefix, features.embeds, suffix])
        deepstack = np.zeros((len(features.deepstack), *embeds.shape), np.float32)
        deepstack[:, len(prefix) : len(prefix) + len(features.embeds)] = features.deepstack
        return PromptInputs(embeds, positions, deepstack, next_position)

    def shared_tokens(self, visual: int, tile: int) -> int:
        """Tokens that the prompts begin with alike, in whole row tiles: there a split changes no bit.

        Args:
            visual: tokens of the image.
            tile: the decoder's row tile.
        """
        if self._common is None:
            return 0
        shared = len(self.templates[0].prefix_ids) + visual + self._common
        return shared - shared % max(tile, MIN_PREFILL)

    def token_ids(self, prompt: int, visual: int, image_pad: int) -> Int64Array:
        """Token ids [S] of one prompt with so many visual tokens in it."""
        template = self.templates[prompt]
        return np.array([*template.prefix_ids, *[image_pad] * visual, *template.suffix_ids], np.int64)


class PromptCache:
    """Renders and embeds the prompts of requests; those met lately are kept. Safe to call from several threads."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer) -> None:
        self._bundle = bundle
        self._tokenizer = tokenizer
        self._table = bundle.embeddings()
        self._kept = lru_cache(MAX_PROMPT_SETS)(self._rendered)

    def get(self, prompts: tuple[Prompt, ...]) -> PromptSet:
        """The prompts as the decoder reads them.

        Raises:
            UsageError: a prompt holds a special token of the model, or is not valid text.
            BundleError: the bundle's chat template can't be used.
        """
        return self._kept(prompts)

    def _rendered(self, prompts: tuple[Prompt, ...]) -> PromptSet:
        return PromptSet(PromptTemplate.all_from_bundle(self._bundle, prompts, self._tokenizer), self._table)


def slot_positions(bundle: Bundle, prompt: PromptTemplate, sampling: Sampling, max_visual_tokens: int) -> int:
    """Positions a slot needs for the longest row.

    Raises:
        UsageError: more than the bundle's context.
    """
    needed = prompt.text_tokens + max_visual_tokens + sampling.max_new_tokens
    if needed > bundle.context:
        raise UsageError(
            f"prompt ({prompt.text_tokens} tokens), --max-visual-tokens {max_visual_tokens} and --max-new-tokens "
            f"{sampling.max_new_tokens} need {needed} positions, the bundle has {bundle.context}: lower one of them, "
            "or export with a larger --context"
        )
    return needed


def needs_shared_slot(prompts: Sequence[PromptTemplate]) -> bool:
    """Whether a decoder of these prompts has one more slot, for what the prompts of an image begin with."""
    return common_suffix(prompts) is not None


def common_suffix(prompts: Sequence[PromptTemplate]) -> int | None:
    """How many tokens after the image several prompts have in common; None where nothing is to be shared.

    Something is left for each of them, since its first new token comes from its own prefill.
    """
    if len(prompts) == 1 or any(one.prefix_ids != prompts[0].prefix_ids for one in prompts):
        return None
    suffixes = [one.suffix_ids for one in prompts]
    room = max(0, min(map(len, suffixes)) - MIN_PREFILL)
    differing = (index for index in range(room) if len({one[index] for one in suffixes}) > 1)
    return next(differing, room)
