"""How captions end: stop tokens, length, loops; and slots that are freed, refilled and closed up meanwhile."""

import dataclasses

import numpy as np
import pytest

from batchcap.config import GenerationConfig
from batchcap.core.errors import UsageError
from batchcap.core.records import Caption, Features, FinishReason, Verdict
from batchcap.decoder.loops import MIN_LOOP_TOKENS
from batchcap.decoder.requests import DecoderPlacement
from batchcap.decoder.session import DecoderOutputs
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate, load_tokenizer, without_cut_character
from tests.decoder.asking import AskingDecoder

TEXT = "Describe this image."
GRIDS = [(2, 2), (3, 5), (5, 3), (1, 6), (4, 4), (2, 3), (6, 2), (3, 3), (2, 7), (4, 3)]
LOOP_START, LOOP_CYCLE = "A cat on a mat.", " and a dog"


def image(bundle: Bundle, index: int) -> Features:
    """Random features, of another size for each index."""
    grid = GRIDS[index % len(GRIDS)]
    random = np.random.default_rng(index)
    hidden, levels = bundle.geometry.text.hidden_size, len(bundle.geometry.vision.deepstack_levels)
    embeds = random.standard_normal((grid[0] * grid[1], hidden), np.float32)
    deepstack = random.standard_normal((levels, *embeds.shape), np.float32)
    return Features(index, embeds, deepstack, grid, 0, 0, "", 0.0, 0.0)


def make_decoder(bundle: Bundle, slots: int = 4, *, thinks: bool = False, **options: float) -> AskingDecoder:
    generation = GenerationConfig(prompt=TEXT, **{"max_new_tokens": 24, **options})  # type: ignore[arg-type]
    prompt = dataclasses.replace(PromptTemplate.from_bundle(bundle, TEXT), opens_thinking=thinks)
    return AskingDecoder(bundle, [prompt], generation, DecoderPlacement(slots, 1, 16))


def with_stop(bundle: Bundle, *tokens: int) -> Bundle:
    ids = dataclasses.replace(bundle.geometry.tokens, stop=tokens)
    return dataclasses.replace(bundle, geometry=dataclasses.replace(bundle.geometry, tokens=ids))


def drain(decoder: AskingDecoder) -> dict[int, Caption]:
    done = {}
    while decoder.active:
        done |= {caption.index: caption for caption in decoder.step()}
    return done


def caption(bundle: Bundle, index: int, **options: float) -> Caption:
    decoder = make_decoder(bundle, slots=1, **options)
    decoder.add_request(image(bundle, index), f"row-{index}")
    return drain(decoder)[index]


def test_length(tiny_bundle_fp32: Bundle) -> None:
    found = caption(with_stop(tiny_bundle_fp32), 0, max_new_tokens=7, loop_stop=False)
    assert len(found.token_ids) == 7
    assert found.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("place", [0, 1, 9])
def test_stop_token(tiny_bundle_fp32: Bundle, place: int) -> None:
    """The first one ends the caption and is no part of it, also where the prefill gives it."""
    endless = with_stop(tiny_bundle_fp32)
    free = caption(endless, 3, loop_stop=False).token_ids
    stop = free[place]
    found = caption(with_stop(tiny_bundle_fp32, stop, 10**6), 3, loop_stop=False)
    assert found.token_ids == free[: free.index(stop)]
    assert found.finish_reason is FinishReason.STOP
    if place == 0:
        assert found.verdict is Verdict.EMPTY


@pytest.mark.parametrize("limit", [1, 2])
def test_shortest_captions(tiny_bundle_fp32: Bundle, limit: int) -> None:
    decoder = make_decoder(with_stop(tiny_bundle_fp32), max_new_tokens=limit)
    for index in range(4):
        decoder.add_request(image(tiny_bundle_fp32, index), f"row-{index}")
    captions = drain(decoder)
    assert sorted(captions) == [0, 1, 2, 3]
    assert all(len(one.token_ids) == limit for one in captions.values())
    assert decoder.free_slots == 4


def scripted(bundle: Bundle, tokens: list[int], **options: bool) -> Caption:
    """The caption of a model that says these tokens."""
    decoder = make_decoder(bundle, slots=1, max_new_tokens=100, **options)
    script = iter(tokens)

    def say(*_inputs: object, **_given: object) -> DecoderOutputs:
        return DecoderOutputs(np.full((16, 1), next(script), np.int64), None)

    decoder._slots.prefill = decoder._slots.step = say
    decoder.add_request(image(bundle, 0), "row")
    return drain(decoder)[0]


def test_a_loop_is_stopped_and_cut(tiny_bundle_fp32: Bundle) -> None:
    tokenizer = load_tokenizer(tiny_bundle_fp32)
    start, cycle = tokenizer.encode(LOOP_START).ids, tokenizer.encode(LOOP_CYCLE).ids
    stopped = scripted(tiny_bundle_fp32, start + cycle * 100)
    assert stopped.finish_reason is FinishReason.LOOP
    assert stopped.verdict is Verdict.REPEATED
    assert stopped.text == LOOP_START + LOOP_CYCLE
    assert len(start) + MIN_LOOP_TOKENS <= len(stopped.token_ids) < len(start) + 2 * MIN_LOOP_TOKENS
    endless = scripted(tiny_bundle_fp32, start + cycle * 100, loop_stop=False)
    assert endless.finish_reason is FinishReason.LENGTH
    assert endless.verdict is Verdict.REPEATED
    assert len(endless.token_ids) == 100


def test_a_caption_cut_inside_a_character(tiny_bundle_fp32: Bundle) -> None:
    """The tiny tokenizer spells these characters in three tokens each; a hundred end after the first of one."""
    ids = load_tokenizer(tiny_bundle_fp32).encode("".join(chr(0x4E00 + 7 * place) for place in range(200))).ids
    found = scripted(tiny_bundle_fp32, ids, loop_stop=False)
    assert len(ids) > 3 * 100
    assert found.finish_reason is FinishReason.LENGTH
    assert found.verdict is Verdict.TRUNCATED
    assert "\ufffd" not in found.text


THOUGHTS = {
    "to the caption": ("So: a cat.\n</think>\n\nA cat on a mat.", "So: a cat.", "A cat on a mat.", Verdict.OK),
    "not to the caption": ("So: a cat.", "So: a cat.", "", Verdict.EMPTY),
    "in circles": ("So" + " a cat" * 90, "So a cat", "", Verdict.REPEATED),
    "on and on": ("".join(f"{number}," for number in range(90)), None, "", Verdict.TRUNCATED),
}


@pytest.mark.parametrize("way", THOUGHTS)
def test_thoughts(tiny_bundle_fp32: Bundle, way: str) -> None:
    said, thinking, text, verdict = THOUGHTS[way]
    ids = load_tokenizer(tiny_bundle_fp32).encode(said).ids
    found = scripted(tiny_bundle_fp32, [*ids, tiny_bundle_fp32.geometry.tokens.stop[0]], thinks=True)
    assert (found.text, found.verdict) == (text, verdict)
    assert found.thinking is not None
    assert found.thinking == thinking or said.startswith(found.thinking)
    if verdict in (Verdict.OK, Verdict.EMPTY):
        assert (found.finish_reason, found.token_ids) == (FinishReason.STOP, tuple(ids))
    elif verdict is Verdict.TRUNCATED:
        assert (found.finish_reason, len(found.token_ids)) == (FinishReason.LENGTH, 100)
    else:
        assert found.finish_reason is FinishReason.LOOP


def test_slots_are_freed_at_once_and_counted(tiny_bundle_int4: Bundle) -> None:
    decoder = make_decoder(tiny_bundle_int4, slots=3)
    for index in range(3):
        decoder.add_request(image(tiny_bundle_int4, index), f"row-{index}")
        assert (decoder.free_slots, decoder.active) == (2 - index, index + 1)
    with pytest.raises(ValueError, match="no slot is free"):
        decoder.add_request(image(tiny_bundle_int4, 3), "row-3")
    drain(decoder)
    assert (decoder.free_slots, decoder.active) == (3, 0)
    assert decoder.step() == []


@pytest.mark.parametrize("name", ["tiny_bundle_fp32", "tiny_bundle_int4"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_closing_gaps_changes_nothing(name: str, options: dict[str, float], request: pytest.FixtureRequest) -> None:
    """Rows of many lengths, too few to fill the slots: the last ones move down again and again."""
    bundle = request.getfixturevalue(name)
    tokens = bundle.geometry.text.vocab_size
    bundle = with_stop(bundle, *range(0, tokens, 12))  # ends captions at many lengths
    many = make_decoder(bundle, slots=12, max_new_tokens=40, **options)
    found: dict[int, Caption] = {}
    sizes = []
    run, move = many._slots.step, many._slots.move
    moves = []
    many._slots.step = lambda rows, *rest: (sizes.append(rows), run(rows, *rest))[1]
    many._slots.move = lambda *places: (moves.append(places), move(*places))[1]
    for burst in (range(10), range(10, 12), range(12, 20)):
        for index in burst:
            if many.free_slots:
                many.add_request(image(bundle, index), f"row-{index}")
        while many.active > 3:
            found |= {one.index: one for one in many.step()}
    found |= drain(many)
    assert moves
    assert max(moves)[0] > max(moves)[1]
    assert len(set(sizes)) > 1
    lengths = {len(one.token_ids) for one in found.values()}
    assert len(lengths) > 3
    for index, one in found.items():
        assert one.token_ids == caption(bundle, index, max_new_tokens=40, **options).token_ids, f"row {index}"


def test_too_many_visual_tokens_are_refused(tiny_bundle_fp32: Bundle) -> None:
    decoder = make_decoder(tiny_bundle_fp32)
    features = image(tiny_bundle_fp32, 0)
    large = dataclasses.replace(features, embeds=np.zeros((17, features.embeds.shape[1]), np.float32), grid=(1, 17))
    with pytest.raises(ValueError, match="17 visual tokens"):
        decoder.add_request(large, "large")
    assert decoder.active == 0


def test_the_context_bounds_the_whole(tiny_bundle_fp32: Bundle) -> None:
    prompt = PromptTemplate.from_bundle(tiny_bundle_fp32, TEXT)
    room = tiny_bundle_fp32.context - prompt.text_tokens - 16
    assert make_decoder(tiny_bundle_fp32, slots=1, max_new_tokens=room).free_slots == 1
    with pytest.raises(UsageError, match=f"{tiny_bundle_fp32.context + 1} positions"):
        make_decoder(tiny_bundle_fp32, slots=1, max_new_tokens=room + 1)


def test_a_text_cut_inside_a_character() -> None:
    assert without_cut_character("a cat \ufffd") == "a cat"
    assert without_cut_character("a \ufffd cat") == "a \ufffd cat"
