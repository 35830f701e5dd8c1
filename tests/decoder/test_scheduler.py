"""The decoder writes what transformers writes, and a caption does not depend on anything beside it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from batchcap.config import GenerationConfig
from batchcap.core.errors import UsageError
from batchcap.core.records import Caption, Features, FinishReason
from batchcap.decoder.requests import DecoderPlacement
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from tests.decoder.asking import AskingDecoder
from tests.decoder.reference import Reference, zeroed

NEW_TOKENS = 20
GRIDS = [(2, 2), (3, 5), (5, 3), (1, 6), (7, 2), (4, 4), (2, 9), (6, 6)]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def images(reference: Reference) -> list[Features]:
    return [reference.features(index, grid, seed=index) for index, grid in enumerate(GRIDS)]


def make_decoder(
    bundle: Bundle, slots: int = 4, threads: int = 1, text: str = "Describe this image.", **options: float
) -> AskingDecoder:
    generation = GenerationConfig(prompt=text, max_new_tokens=NEW_TOKENS, loop_stop=False, **options)  # type: ignore[arg-type]
    prompt = PromptTemplate.from_bundle(bundle, text)
    return AskingDecoder(bundle, [prompt], generation, DecoderPlacement(slots, threads, max_visual_tokens=36))


def caption_all(decoder: AskingDecoder, images: Iterable[Features]) -> dict[int, Caption]:
    waiting = list(images)
    done: dict[int, Caption] = {}
    while waiting or decoder.active:
        while waiting and decoder.free_slots:
            features = waiting.pop(0)
            decoder.add_request(features, f"row-{features.index}")
        for caption in decoder.step():
            assert caption.index not in done
            done[caption.index] = caption
    return done


def ids_of(captions: dict[int, Caption]) -> dict[int, tuple[int, ...]]:
    return {index: caption.token_ids for index, caption in captions.items()}


def test_fp32_captions_equal_transformers(
    tiny_bundle_fp32: Bundle, reference: Reference, images: list[Features]
) -> None:
    captions = caption_all(make_decoder(tiny_bundle_fp32), images)
    prompt = PromptTemplate.from_bundle(tiny_bundle_fp32, "Describe this image.")
    expected = {
        index: tuple(reference.caption_ids(prompt, grid, seed=index, new_tokens=NEW_TOKENS))
        for index, grid in enumerate(GRIDS)
    }
    assert ids_of(captions) == expected
    assert len(set(expected.values())) > len(GRIDS) // 2, "the images must matter, or this test can't fail"


def test_repetition_penalty_equals_transformers(
    tiny_bundle_fp32: Bundle, reference: Reference, images: list[Features]
) -> None:
    captions = caption_all(make_decoder(tiny_bundle_fp32, repetition_penalty=1.3), images[:4])
    prompt = PromptTemplate.from_bundle(tiny_bundle_fp32, "Describe this image.")
    for index, grid in enumerate(GRIDS[:4]):
        expected = reference.caption_ids(prompt, grid, index, NEW_TOKENS, repetition_penalty=1.3)
        assert list(captions[index].token_ids) == expected


def test_deepstack_matters(tiny_bundle_fp32: Bundle, images: list[Features]) -> None:
    with_levels = ids_of(caption_all(make_decoder(tiny_bundle_fp32), images))
    without = ids_of(caption_all(make_decoder(tiny_bundle_fp32), [zeroed(one) for one in images]))
    assert all(with_levels[index] != without[index] for index in with_levels)


@pytest.mark.parametrize("bundle_name", ["tiny_bundle_fp32", "tiny_bundle_int8", "tiny_bundle_int4"])
def test_a_caption_depends_on_nothing_beside_it(
    bundle_name: str, images: list[Features], request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    expected = {}
    for features in images:
        expected |= ids_of(caption_all(make_decoder(bundle, slots=1), [features]))
    for slots, threads in ((1, 2), (2, 1), (3, 2), (5, 1), (8, 2)):
        order = list(np.random.default_rng(slots).permutation(len(images)))
        captions = caption_all(make_decoder(bundle, slots, threads), [images[place] for place in order])
        assert ids_of(captions) == expected, f"{slots} slots, {threads} threads"


def test_sampling_is_seeded_by_row(tiny_bundle_fp32: Bundle, images: list[Features]) -> None:
    options = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
    first = ids_of(caption_all(make_decoder(tiny_bundle_fp32, slots=1, **options), images))
    again = ids_of(caption_all(make_decoder(tiny_bundle_fp32, slots=5, **options), reversed(images)))
    other = ids_of(caption_all(make_decoder(tiny_bundle_fp32, seed=1, **options), images))
    greedy = ids_of(caption_all(make_decoder(tiny_bundle_fp32), images))
    assert first == again
    assert first != other
    assert first != greedy


def test_length_and_counts(tiny_bundle_fp32: Bundle, images: list[Features]) -> None:
    captions = caption_all(make_decoder(tiny_bundle_fp32), images)
    prompt = PromptTemplate.from_bundle(tiny_bundle_fp32, "Describe this image.")
    for index, caption in captions.items():
        visual = GRIDS[index][0] * GRIDS[index][1]
        assert caption.visual_tokens == visual
        assert caption.prompt_tokens == visual + prompt.text_tokens
        if caption.finish_reason is FinishReason.LENGTH:
            assert len(caption.token_ids) == NEW_TOKENS


def test_too_long_for_the_context(tiny_bundle_fp32: Bundle) -> None:
    prompt = PromptTemplate.from_bundle(tiny_bundle_fp32, "Describe this image.")
    generation = GenerationConfig(max_new_tokens=5000)
    with pytest.raises(UsageError, match="--max-new-tokens 5000"):
        AskingDecoder(tiny_bundle_fp32, [prompt], generation, DecoderPlacement(1, 1, 36))
