"""Each request has its own prompts and sampling: beside any others its captions are those that it has alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from batchcap.core.errors import UsageError
from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.records import Features
from batchcap.decoder import prompt_inputs
from batchcap.decoder.load import OpenedDecoder
from batchcap.decoder.prompt_inputs import PromptCache
from batchcap.decoder.requests import DecodeRequest, DecoderPlacement, SlotShape, WrittenTokens
from batchcap.decoder.scheduler import ContinuousBatcher
from batchcap.decoder.session import DecoderSession
from batchcap.decoder.slots import Slots
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import load_tokenizer
from tests.decoder.reference import Reference

GRIDS = [(2, 2), (3, 5), (1, 6), (7, 2), (5, 5), (4, 3)]
WHOLE, WHAT = Prompt("Describe this image.", "whole"), Prompt("What is it?", "what")
COLOURS = Prompt("Describe the colours of this image, please.", "colours")
GREEDY = Sampling(14, loop_stop=False)
# As the requests of one job might be some day.
ASKED = [
    ((WHOLE,), GREEDY),
    ((WHOLE, WHAT, COLOURS), GREEDY),
    ((COLOURS,), replace(GREEDY, max_new_tokens=5)),
    ((WHAT, COLOURS), replace(GREEDY, temperature=1.0, seed=3)),
    ((WHOLE,), replace(GREEDY, repetition_penalty=1.4)),
    ((WHAT,), replace(GREEDY, temperature=1.0, seed=4)),
]
MADE_FOR = SlotShape(positions=200, with_logits=True, with_prefix_slot=True)

Written = dict[tuple[int, int], tuple[int, ...]]


@pytest.fixture(scope="module")
def images(tiny_checkpoint: Path) -> list[Features]:
    reference = Reference.load(tiny_checkpoint)
    return [reference.features(index, grid, seed=index) for index, grid in enumerate(GRIDS)]


def requests(bundle: Bundle, images: list[Features]) -> list[DecodeRequest]:
    cache = PromptCache(bundle, load_tokenizer(bundle))
    return [
        DecodeRequest(f"row-{image.index}", image, cache.get(prompts), sampling)
        for image, (prompts, sampling) in zip(images, ASKED, strict=True)
    ]


def written(bundle: Bundle, asked: list[DecodeRequest], slots: int, shape: SlotShape = MADE_FOR) -> Written:
    decoder = ContinuousBatcher(bundle, DecoderPlacement(slots, 1, 36), shape)
    waiting, done = list(asked), list[WrittenTokens]()
    while waiting or decoder.active:
        while waiting and decoder.free_slots:
            decoder.add_request(waiting.pop(0))
        done += decoder.step()
    return {(one.index, one.prompt): one.token_ids for one in done}


@pytest.mark.parametrize("name", ["tiny_bundle_fp32", "tiny_bundle_int4"])
def test_what_is_asked_beside_changes_no_caption(
    name: str, images: list[Features], request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(name)
    asked = requests(bundle, images)
    expected: Written = {}
    for one in asked:
        templates = one.prompts.templates
        shape = SlotShape.of(bundle, templates, one.sampling, 36)  # as if this were all that is ever asked
        expected |= written(bundle, [one], 1, shape)
    assert [number for _index, number in expected].count(0) == len(ASKED)
    assert len(expected[2, 0]) == 5
    assert len(set(expected.values())) > len(expected) / 2, "what is asked must matter, or this can't fail"
    for slots in (2, 5):
        assert written(bundle, asked, slots) == expected
        assert written(bundle, asked[::-1], slots) == expected


def test_without_a_slot_for_it_nothing_is_shared_and_the_captions_are_the_same(
    tiny_bundle_fp32: Bundle, images: list[Features]
) -> None:
    asked = requests(tiny_bundle_fp32, images)
    shared = written(tiny_bundle_fp32, asked, 3)
    assert written(tiny_bundle_fp32, asked, 3, replace(MADE_FOR, with_prefix_slot=False)) == shared


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (replace(MADE_FOR, positions=30), "positions of 30 planned"),
        (replace(MADE_FOR, with_logits=False), "the arg-max inside the graph was planned"),
    ],
)
def test_what_the_slots_were_not_made_for_is_refused(
    tiny_bundle_fp32: Bundle, images: list[Features], shape: SlotShape, reason: str
) -> None:
    decoder = ContinuousBatcher(tiny_bundle_fp32, DecoderPlacement(2, 1, 36), shape)
    with pytest.raises(ValueError, match=reason):
        decoder.add_request(requests(tiny_bundle_fp32, images)[3])
    assert (decoder.free_slots, decoder.active) == (2, 0)


def test_the_decoders_row_tile_decides_where_a_prompt_is_split(
    tiny_bundle_fp32: Bundle, images: list[Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, lengths = tiny_bundle_fp32, list[int]()
    prefill = Slots.prefill
    monkeypatch.setattr(
        Slots,
        "prefill",
        lambda slots, slot, *rest, **past: (lengths.append(len(rest[0])), prefill(slots, slot, *rest, **past))[1],
    )
    opened = OpenedDecoder(DecoderSession(bundle.decoder_path, bundle.geometry, 1), 16)
    ContinuousBatcher(bundle, DecoderPlacement(4, 1, 36), MADE_FOR, opened).add_request(requests(bundle, images)[1])
    assert lengths[0] % 16 == 0
    assert len(lengths) == 4


def test_prompts_met_before_are_not_rendered_again(tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_inputs, "MAX_PROMPT_SETS", 2)
    cache = PromptCache(tiny_bundle_fp32, load_tokenizer(tiny_bundle_fp32))
    first = cache.get((WHOLE, WHAT))
    assert cache.get((Prompt("Describe this image.", "whole"), WHAT)) is first
    assert cache.get((WHAT, WHOLE)) is not first
    cache.get((COLOURS,))
    assert cache.get((WHOLE, WHAT)) is not first, "a job with a prompt a row keeps no more than a few"
    with pytest.raises(UsageError, match="the special token"):
        cache.get((Prompt("What is <|image_pad|>?"),))
