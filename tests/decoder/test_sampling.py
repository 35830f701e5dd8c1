"""Sampling follows transformers' rules, draws in the right shares, and depends on seed, row and step alone."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from batchcap.core.prompts import Sampling
from batchcap.core.records import Float32Array
from batchcap.decoder.sampling import Sampler

VOCABULARY = 40
# transformers computes in float32, batchcap in float64.
SHARE_TOLERANCE = 2e-6
DRAWS = 4000
# Five standard deviations of a share of one half over so many draws.
DRAWN_TOLERANCE = 5 * 0.5 / DRAWS**0.5


def make_sampler(row_id: str = "row", prompt: list[int] | None = None, **options: float) -> Sampler:
    sampling = Sampling(**{"max_new_tokens": 99, "temperature": 1.0, **options})  # type: ignore[arg-type]
    return Sampler(sampling, row_id, np.array(prompt or [], np.int64))


def random_logits(seed: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32) * 3


def reference_shares(logits: Float32Array, prompt: list[int], options: dict[str, float]) -> np.ndarray:
    steps = LogitsProcessorList()
    if options["repetition_penalty"] != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    steps.append(TemperatureLogitsWarper(options["temperature"]))
    if options["top_k"]:
        steps.append(TopKLogitsWarper(int(options["top_k"])))
    if options["top_p"] < 1:
        steps.append(TopPLogitsWarper(options["top_p"]))
    scores = steps(torch.tensor([prompt]), torch.from_numpy(logits.copy())[None])
    return scores.softmax(-1)[0].numpy()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.8]),
    top_k=st.sampled_from([0, 1, 5, 39, 40, 400]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.4]),
)
def test_shares_equal_transformers(seed: int, **options: float) -> None:
    logits, prompt = random_logits(seed), [3, 3, 17, 25]
    sampler = make_sampler(prompt=prompt, **options)
    np.testing.assert_allclose(
        sampler.probabilities(logits), reference_shares(logits, prompt, options), atol=SHARE_TOLERANCE
    )


def test_draws_have_the_right_shares() -> None:
    logits = random_logits(1)
    options = {"temperature": 1.5, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.0}
    drawn = Counter(make_sampler(f"row-{number}", **options).choose(logits, 0) for number in range(DRAWS))
    expected = reference_shares(logits, [0], options)
    found = np.array([drawn[token] / DRAWS for token in range(VOCABULARY)])
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    np.testing.assert_allclose(found, expected, atol=DRAWN_TOLERANCE)


def test_steps_of_one_row_draw_apart() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    sampler = make_sampler()
    drawn = [sampler.choose(logits, step) for step in range(DRAWS)]
    found = np.bincount(drawn, minlength=VOCABULARY) / DRAWS
    np.testing.assert_allclose(found, 1 / VOCABULARY, atol=DRAWN_TOLERANCE)
    following = Counter(itertools.pairwise(drawn))
    assert max(following.values()) < 5 * DRAWS / VOCABULARY**2 + 10, "neighbouring steps must not go together"


def test_a_draw_depends_on_seed_row_and_step_alone() -> None:
    logits = np.zeros(VOCABULARY, np.float32)

    def draws(row_id: str, seed: int) -> list[int]:
        sampler = make_sampler(row_id, seed=seed)
        return [sampler.choose(logits, step) for step in range(12)]

    assert draws("a", 0) == draws("a", 0)
    assert draws("a", 0) != draws("b", 0)
    assert draws("a", 0) != draws("a", 1)
    late = make_sampler("a", seed=0)
    assert late.choose(logits, 11) == draws("a", 0)[11]
    assert draws("caf\udce9", 0) != draws("caf\udcea", 0), "ids from odd file names work, too"


def test_penalty_counts_new_tokens() -> None:
    logits = np.array([2.0, 1.9, 1.8, -5.0], np.float32)
    sampler = make_sampler(temperature=0.0, repetition_penalty=1.5)
    assert [sampler.choose(logits, step) for step in range(4)] == [0, 1, 2, 0]
    assert logits.tolist() == pytest.approx([2.0, 1.9, 1.8, -5.0]), "the logits belong to the session"
