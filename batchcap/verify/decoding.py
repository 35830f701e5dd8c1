"""Owns the checks of what a bundle's decoder writes: its logits and captions beside the reference's, and its own.

Letters used for shapes: n steps, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from tqdm import tqdm

from batchcap.core.machine import available_cores
from batchcap.core.prompts import Sampling
from batchcap.core.records import Features, Float32Array
from batchcap.decoder.invariance import find_batch_multiple
from batchcap.decoder.positions import prompt_positions
from batchcap.decoder.prompt_inputs import PromptSet
from batchcap.decoder.requests import DecodeRequest, DecoderPlacement, SlotShape
from batchcap.decoder.scheduler import ContinuousBatcher
from batchcap.decoder.session import DecoderOutputs, DecoderSession
from batchcap.decoder.slots import Slots
from batchcap.export.quality.metrics import Distance, distance
from batchcap.export.quality.reference import Continuation
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from batchcap.verify.table import Bound, Row

BATCH = 8

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """How far a decoder may be from the reference with the checkpoint's own weights.

    Attributes:
        error: largest difference of a prefill's logit, as a part of the largest logit.
        divergence: mean Kullback-Leibler divergence of the next token's distribution, in nats.
        same_top: share of steps with the same likeliest token.
        same_captions: share of images with the same greedy token ids.
    """

    error: float
    divergence: float
    same_top: float
    same_captions: float


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of one image when its decoding is compared.

    Attributes:
        name: for a person.
        features: what the bundle's encoder saw, in float32.
        expected: the reference's greedy tokens and their logits; these may lie in a file.
    """

    name: str
    features: Features
    expected: Continuation


@dataclass(frozen=True, slots=True)
class DecodingPlan:
    """What is asked about each image, and how much room that needs."""

    prompt: PromptTemplate
    steps: int
    max_visual_tokens: int

    @property
    def positions(self) -> int:
        """Positions of the longest row."""
        return self.prompt.text_tokens + self.max_visual_tokens + self.steps


def check_logits(bundle: Bundle, plan: DecodingPlan, images: Sequence[Image], limits: DecodingLimits) -> Iterator[Row]:
    """Compare the logits after the prompt and after each of the reference's own tokens."""
    decoder = ForcedDecoder(bundle, plan)
    distances = []
    for image in tqdm(images, desc="logits", unit="image", disable=None, leave=False):
        found = decoder.logits(image.features, image.expected.token_ids)
        distances.append([distance(*pair) for pair in zip(image.expected.logits, found, strict=True)])
    prefills = [of_image[0] for of_image in distances]
    worst = int(np.argmax([one.error for one in prefills]))
    names = [image.name for image in images]
    yield Row("prefill, logits", prefills[worst].error, limits.error, unit="of the largest", worst=names[worst])
    yield _divergence("prefill, divergence", [[one] for one in prefills], names, limits.divergence)
    yield _divergence(f"{plan.steps} steps, divergence", distances, names, limits.divergence)
    shares = [fmean(one.same_top for one in steps) for steps in distances]
    worst = int(np.argmin(shares))
    told = f"{names[worst]}: {shares[worst]:.3g}"
    check = f"{plan.steps} steps, same likeliest token"
    yield Row(check, fmean(shares), limits.same_top, Bound.AT_LEAST, unit="of all", worst=told)


def check_captions(
    bundle: Bundle, plan: DecodingPlan, images: Sequence[Image], limits: DecodingLimits
) -> Iterator[Row]:
    """Compare greedy token ids with the reference's, and those of a batch with those written one by one."""
    features = [image.features for image in images]
    single = greedy_ids(bundle, plan, features, slots=1)
    batched = greedy_ids(bundle, plan, features, slots=min(BATCH, len(features)))
    stop = bundle.geometry.tokens.stop
    other = [
        image.name for image, found in zip(images, single, strict=True) if found != image.expected.caption_ids(stop)
    ]
    share = 1 - len(other) / len(images)
    yield Row("greedy ids, same captions", share, limits.same_captions, Bound.AT_LEAST, worst=", ".join(other[:2]))
    alone = [image.name for image, one, many in zip(images, single, batched, strict=True) if one != many]
    yield Row("greedy ids, batched against single", len(alone), 0, unit="captions", worst=", ".join(alone[:2]))


class ForcedDecoder:
    """A bundle's decoder that is told which tokens to go on with, and gives every logit."""

    def __init__(self, bundle: Bundle, plan: DecodingPlan) -> None:
        session = DecoderSession(bundle.decoder_path, bundle.geometry, available_cores())
        self._count = find_batch_multiple(session, bundle.geometry)
        self._slots = Slots(session, bundle.geometry, self._count, plan.positions, with_logits=True)
        self._table = bundle.embeddings()
        self._prompt = plan.prompt

    def logits(self, features: Features, token_ids: TokenIds) -> Float32Array:
        """Logits [n, V]: after the prompt, then after each of the n token ids but the last."""
        prefix, suffix = self._prompt.prefix_ids, self._prompt.suffix_ids
        positions, following = prompt_positions(len(prefix), features.grid, len(suffix))
        text = self._table.lookup(np.array([*prefix, *suffix], np.int64))
        embeds = np.concatenate([text[: len(prefix)], features.embeds, text[len(prefix) :]])
        deepstack = np.zeros((len(features.deepstack), *embeds.shape), np.float32)
        deepstack[:, len(prefix) : len(prefix) + len(features.embeds)] = features.deepstack
        found = [_first_row(self._slots.prefill(0, embeds, positions, deepstack))]
        for step, token in enumerate(token_ids[:-1]):
            lengths, where = np.zeros(self._count, np.int64), np.zeros(self._count, np.int64)
            lengths[0], where[0] = len(embeds) + step, following + step
            tokens = np.full(self._count, token, np.int64)
            found.append(_first_row(self._slots.step(self._count, lengths, where, self._table.lookup(tokens))))
        self._slots.release(0)
        return np.stack(found)


def greedy_ids(bundle: Bundle, plan: DecodingPlan, features: Sequence[Features], slots: int) -> list[TokenIds]:
    """The captions' token ids, in the order of the features, written as many at a time as there are slots."""
    sampling = Sampling(plan.steps, loop_stop=False)
    shape = SlotShape.of(bundle, [plan.prompt], sampling, plan.max_visual_tokens)
    decoder = ContinuousBatcher(bundle, DecoderPlacement(slots, available_cores(), plan.max_visual_tokens), shape)
    prompts = PromptSet([plan.prompt], bundle.embeddings())
    waiting, done = list(enumerate(features)), dict[int, TokenIds]()
    places = {one.index: index for index, one in enumerate(features)}
    with tqdm(desc=f"captions, {slots} at a time", total=len(features), disable=None, leave=False) as progress:
        while waiting or decoder.active:
            while waiting and decoder.free_slots:
                index, one = waiting.pop(0)
                decoder.add_request(DecodeRequest(str(index), one, prompts, sampling))
            for written in decoder.step():
                done[places[written.index]] = written.token_ids
                progress.update()
    return [done[index] for index in range(len(features))]


def _first_row(outputs: DecoderOutputs) -> Float32Array:
    assert outputs.logits is not None  # noqa: S101 - asked for in __init__
    logits: Float32Array = outputs.logits[0, 0].copy()
    return logits


def _divergence(check: str, distances: Sequence[Sequence[Distance]], names: Sequence[str], limit: float) -> Row:
    """The mean over all steps of all images; told is the worst of them."""
    values = np.array([[one.divergence for one in steps] for steps in distances])
    image, step = (int(index) for index in np.unravel_index(values.argmax(), values.shape))
    told = f"{names[image]} step {step}: {values[image, step]:.3g}"
    return Row(check, float(values.mean()), limit, unit="nats", worst=told)
