"""Several prompts an image: each caption is bit for bit what its prompt alone gives, and the image is read once."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from batchcap.config import GenerationConfig
from batchcap.core.prompts import Prompt
from batchcap.core.records import Caption, Features, FinishReason, Float32Array
from batchcap.decoder import prompt_inputs
from batchcap.decoder.invariance import MAX_BATCH, TILES, find_batch_multiple, warn_if_a_split_shows
from batchcap.decoder.prompt_inputs import PromptSet
from batchcap.decoder.requests import DecoderPlacement
from batchcap.decoder.session import DecoderSession
from batchcap.decoder.slots import Slots
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from tests.decoder.asking import AskingDecoder
from tests.decoder.reference import Reference

NEW_TOKENS = 16
GRIDS = [(2, 2), (3, 5), (1, 6), (7, 2), (5, 5), (1, 1)]
ASKED = (
    Prompt("Describe this image.", "whole"),
    Prompt("Describe the colours of this image, please.", "colours"),
    Prompt("What is it?", "what"),
)
BUNDLES = ["tiny_bundle_fp32", "tiny_bundle_int8", "tiny_bundle_int4", "tiny_bundle_w8a8"]
SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def images(reference: Reference) -> list[Features]:
    return [reference.features(index, grid, seed=index) for index, grid in enumerate(GRIDS)]


def make_decoder(bundle: Bundle, prompts: Iterable[Prompt], slots: int = 4, **options: Any) -> AskingDecoder:
    generation = GenerationConfig(max_new_tokens=NEW_TOKENS, loop_stop=False, **options)
    templates = PromptTemplate.all_from_bundle(bundle, list(prompts))
    return AskingDecoder(bundle, templates, generation, DecoderPlacement(slots, 1, max_visual_tokens=36))


def caption_all(decoder: AskingDecoder, images: Iterable[Features]) -> dict[tuple[int, int], Caption]:
    """Captions by row and prompt."""
    waiting = list(images)
    done: dict[tuple[int, int], Caption] = {}
    while waiting or decoder.active:
        while waiting and decoder.free_slots:
            features = waiting.pop(0)
            decoder.add_request(features, f"row-{features.index}")
        for caption in decoder.step():
            assert (caption.index, caption.prompt) not in done
            done[caption.index, caption.prompt] = caption
    return done


def each_alone(bundle: Bundle, images: list[Features], **options: Any) -> dict[tuple[int, int], tuple[int, ...]]:
    return {
        (index, place): caption.token_ids
        for place, prompt in enumerate(ASKED)
        for (index, _only), caption in caption_all(make_decoder(bundle, [prompt], 1, **options), images).items()
    }


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", BUNDLES)
def test_asked_together_or_alone(
    name: str, options: dict[str, float], images: list[Features], request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(name)
    expected = each_alone(bundle, images, **options)
    assert len(set(expected.values())) > len(expected) * 2 / 3, "prompts and images must matter, or this can't fail"
    for slots in (1, 2, 4, 11):
        found = caption_all(make_decoder(bundle, ASKED, slots, **options), images)
        assert {place: caption.token_ids for place, caption in found.items()} == expected, f"{slots} slots"


def test_the_order_of_the_prompts_changes_no_caption(tiny_bundle_int4: Bundle, images: list[Features]) -> None:
    found = caption_all(make_decoder(tiny_bundle_int4, ASKED[::-1], **SAMPLED), images)
    expected = each_alone(tiny_bundle_int4, images, **SAMPLED)
    assert {(index, 2 - place): caption.token_ids for (index, place), caption in found.items()} == expected


def test_the_name_is_part_of_the_draws(tiny_bundle_fp32: Bundle, images: list[Features]) -> None:
    twice = [Prompt("Describe.", "one"), Prompt("Describe.", "other")]
    found = caption_all(make_decoder(tiny_bundle_fp32, twice, temperature=1.0), images[:2])
    assert found[0, 0].token_ids != found[0, 1].token_ids
    greedy = caption_all(make_decoder(tiny_bundle_fp32, twice), images[:2])
    assert greedy[0, 0].token_ids == greedy[0, 1].token_ids


def test_fp32_captions_equal_transformers(
    tiny_bundle_fp32: Bundle, reference: Reference, images: list[Features]
) -> None:
    found = caption_all(make_decoder(tiny_bundle_fp32, ASKED), images)
    for place, prompt in enumerate(ASKED):
        template = PromptTemplate.from_bundle(tiny_bundle_fp32, prompt.text)
        for index, grid in enumerate(GRIDS):
            expected = reference.caption_ids(template, grid, seed=index, new_tokens=NEW_TOKENS)
            assert list(found[index, place].token_ids) == expected
            assert found[index, place].prompt_tokens == template.text_tokens + grid[0] * grid[1]


def prefilled_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prefill from now on reads."""
    tokens: list[int] = []
    prefill = Slots.prefill

    def counted(slots: Slots, slot: int, embeds: Float32Array, *rest: Any, **options: Any) -> Any:
        tokens.append(len(embeds))
        return prefill(slots, slot, embeds, *rest, **options)

    monkeypatch.setattr(Slots, "prefill", counted)
    return tokens


@pytest.mark.parametrize("slots", [1, 4])
def test_the_image_is_prefilled_once(
    tiny_bundle_fp32: Bundle, images: list[Features], monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    decoder = make_decoder(tiny_bundle_fp32, ASKED, slots)
    tokens = prefilled_tokens(monkeypatch)
    caption_all(decoder, [images[3]])
    assert len(tokens) == 1 + len(ASKED)
    visual = GRIDS[3][0] * GRIDS[3][1]
    templates = PromptTemplate.all_from_bundle(tiny_bundle_fp32, ASKED)
    assert [tokens[0] + rest for rest in tokens[1:]] == [visual + one.text_tokens for one in templates]
    # All of the image but what is cut off to whole tiles.
    assert tokens[0] > len(templates[0].prefix_ids) + visual - MAX_BATCH


def test_one_prompt_is_prefilled_in_one_pass(
    tiny_bundle_fp32: Bundle, images: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder(tiny_bundle_fp32, ASKED[:1])
    tokens = prefilled_tokens(monkeypatch)
    caption_all(decoder, images[:2])
    assert len(tokens) == 2


def test_nothing_is_shared_where_the_template_writes_the_text_first(
    tiny_bundle_fp32: Bundle, images: list[Features]
) -> None:
    templates = PromptTemplate.all_from_bundle(tiny_bundle_fp32, ASKED)
    first = [dataclasses.replace(one, prefix_ids=one.prefix_ids + one.suffix_ids[1:4]) for one in templates]
    generation = GenerationConfig(max_new_tokens=4, loop_stop=False)
    placement = DecoderPlacement(4, 1, max_visual_tokens=36)
    found = caption_all(AskingDecoder(tiny_bundle_fp32, first, generation, placement), images)
    for place, one in enumerate(first):
        alone = caption_all(AskingDecoder(tiny_bundle_fp32, [one], generation, placement), images)
        for index in range(len(images)):
            assert found[index, place].token_ids == alone[index, 0].token_ids


def test_short_captions_do_not_wait_for_long_ones(tiny_bundle_fp32: Bundle, images: list[Features]) -> None:
    """A slot whose caption has ended takes the next image while the long one beside it goes on."""
    alone = caption_all(make_decoder(tiny_bundle_fp32, ASKED), images)
    # A token that ends some captions early, and one of them never.
    ids = {place: caption.token_ids for place, caption in alone.items()}
    counts = {token: sum(token in one[:4] for one in ids.values()) for one in ids.values() for token in one}
    token = next(
        token
        for token in sorted(counts, key=lambda one: -counts[one])
        if any(token not in one for one in ids.values() if len(one) == NEW_TOKENS)
    )
    assert counts[token] >= 2
    tokens = dataclasses.replace(tiny_bundle_fp32.geometry.tokens, stop=(token,))
    geometry = dataclasses.replace(tiny_bundle_fp32.geometry, tokens=tokens)
    bundle = dataclasses.replace(tiny_bundle_fp32, geometry=geometry)

    decoder = make_decoder(bundle, ASKED, slots=2)
    waiting, ended, steps = list(images), [], 0
    while waiting or decoder.active:
        while waiting and decoder.free_slots:
            decoder.add_request(waiting[0], f"row-{waiting.pop(0).index}")
        ended += decoder.step()
        steps += 1
    assert len(ended) == len(images) * len(ASKED)
    reasons = [caption.finish_reason for caption in ended]
    assert {FinishReason.STOP, FinishReason.LENGTH} <= set(reasons)
    # Steps in which rows had to be computed, if the two slots were never idle while anything waited.
    tokens_written = sum(len(caption.token_ids) for caption in ended)
    assert steps <= (tokens_written + len(ended)) / 2 + NEW_TOKENS
    order = [(caption.index, caption.prompt) for caption in ended]
    assert order != sorted(order), "a later caption has ended before an earlier one"


def test_a_row_that_is_given_up_leaves_its_slots(tiny_bundle_fp32: Bundle, images: list[Features]) -> None:
    decoder = make_decoder(tiny_bundle_fp32, ASKED, slots=2)
    decoder.add_request(images[0], "row-0")
    assert (decoder.free_slots, decoder.active, decoder.can_go_on) == (0, 3, False)
    decoder.abort(0)
    assert (decoder.free_slots, decoder.active) == (2, 0)
    found = caption_all(decoder, images[1:2])
    alone = caption_all(make_decoder(tiny_bundle_fp32, ASKED), images[1:2])
    assert {place: one.token_ids for place, one in found.items()} == {
        place: one.token_ids for place, one in alone.items()
    }


@pytest.mark.parametrize("name", BUNDLES)
def test_this_cpu_splits_without_a_trace(
    name: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = request.getfixturevalue(name)
    session = DecoderSession(bundle.decoder_path, bundle.geometry, 1)
    warn_if_a_split_shows(session, bundle.geometry, find_batch_multiple(session, bundle.geometry))
    assert not caplog.records


@pytest.mark.parametrize("tile", TILES)
def test_a_split_is_never_inside_a_row_tile(tiny_bundle_fp32: Bundle, tile: int) -> None:
    """Of any CPU: with few-bit weights a row left over goes through another kernel. And never one row alone."""
    templates = PromptTemplate.all_from_bundle(tiny_bundle_fp32, list(ASKED))
    prompts = PromptSet(templates, tiny_bundle_fp32.embeddings())
    common = prompt_inputs.common_suffix(templates)
    assert common is not None
    step = max(2, tile)
    for visual in range(1, 37):
        alike = len(templates[0].prefix_ids) + visual + common
        assert prompts.shared_tokens(visual, tile) == alike // step * step


@pytest.mark.parametrize(
    ("suffixes", "common"),
    [
        ([(5, 6, 7, 8, 9), (5, 6, 1, 8, 9)], 2),
        ([(5, 6, 7, 8, 9), (5, 6, 7, 8, 9)], 3),
        ([(5, 6, 7, 8, 9), (5, 6, 7)], 1),
        ([(4, 6), (5, 6)], 0),
        ([(4, 6)], None),
    ],
)
def test_what_prompts_have_in_common(suffixes: list[tuple[int, ...]], common: int | None) -> None:
    assert prompt_inputs.common_suffix([PromptTemplate((1, 2), suffix) for suffix in suffixes]) == common
