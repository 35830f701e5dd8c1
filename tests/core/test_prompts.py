"""Which requests have the same captions where their images are the same bytes."""

from dataclasses import fields, replace

import pytest

from batchcap.config import GenerationConfig
from batchcap.core.prompts import Prompt, Sampling, caption_key
from batchcap.core.records import ImageRow, Request

PROMPTS = (Prompt("Describe.", "long"), Prompt("Name it.", "short"))
GREEDY = Sampling(64)
OTHER = {
    "max_new_tokens": 65,
    "top_p": 0.5,
    "top_k": 3,
    "repetition_penalty": 1.1,
    "seed": 1,
    "loop_stop": False,
}


def test_the_same_is_asked() -> None:
    key = caption_key(PROMPTS, GREEDY)
    assert key is not None
    assert len(bytes.fromhex(key)) == 32
    assert caption_key((Prompt("Describe.", "long"), Prompt("Name it.", "short")), Sampling(64)) == key
    rows = [ImageRow(index, str(index), "s", index) for index in range(2)]
    assert [Request(row, PROMPTS, GREEDY, attempt).caption_key for attempt, row in enumerate(rows)] == [key, key]


@pytest.mark.parametrize(
    "prompts",
    [PROMPTS[:1], PROMPTS[::-1], (PROMPTS[0], replace(PROMPTS[1], text="Name it")), (Prompt("Describe.\udcff"),)],
)
def test_other_prompts(prompts: tuple[Prompt, ...]) -> None:
    assert caption_key(prompts, GREEDY) not in (None, caption_key(PROMPTS, GREEDY))


def test_other_sampling() -> None:
    keys = {caption_key(PROMPTS, replace(GREEDY, **{name: value})) for name, value in OTHER.items()}
    assert len(keys | {caption_key(PROMPTS, GREEDY)}) == len(OTHER) + 1
    assert caption_key(PROMPTS, replace(GREEDY, temperature=0.5)) is None, "equal images get other captions"
    assert {one.name for one in fields(Sampling)} == {*OTHER, "temperature"}, "a new setting decides captions, too"


def test_the_sampling_of_a_job() -> None:
    asked = GenerationConfig("What?", max_new_tokens=7, temperature=0.5, top_k=4, seed=9, loop_stop=False)
    assert asked.sampling == Sampling(7, 0.5, top_k=4, seed=9, loop_stop=False)
