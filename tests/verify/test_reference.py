"""The reference gives the model's own answers, the same by every way there is to ask for them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from batchcap.core.errors import UsageError
from batchcap.core.records import Patches
from batchcap.export.quality import reference as module
from batchcap.export.quality.reference import Continuation, Reference, ReferenceDtype
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from batchcap.model.tensors import read_index

STEPS = 8
TOLERANCE = 1e-4  # of a logit, as a part of the largest: one pass beside a pass a token, float32


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


@pytest.fixture(scope="module")
def prompt(tiny_bundle_fp32: Bundle) -> PromptTemplate:
    return PromptTemplate.from_bundle(tiny_bundle_fp32, "Describe this image.")


def image(bundle: Bundle, grid: tuple[int, int]) -> Patches:
    values = np.random.default_rng(0).standard_normal((math.prod(grid), bundle.geometry.vision.patch_values))
    return Patches(3, values.astype(np.float32), grid, 640, 480, "", 0.0)


@pytest.mark.parametrize("grid", [(4, 12), (10, 4)])
def test_teacher_forcing_equals_generation(
    grid: tuple[int, int], reference: Reference, prompt: PromptTemplate, tiny_bundle_fp32: Bundle
) -> None:
    patches = image(tiny_bundle_fp32, grid)
    found = reference.greedy(patches, prompt, STEPS)
    assert len(found.token_ids) == STEPS
    assert found.token_ids == tuple(found.logits.argmax(1).tolist())
    forced = reference.logits(patches, prompt, found.token_ids[:-1])
    assert np.abs(forced - found.logits).max() < TOLERANCE * np.abs(found.logits).max()
    np.testing.assert_array_equal(
        reference.logits(patches, prompt)[0].argmax(), found.token_ids[0], "the prefill's own row"
    )


def test_features_are_those_of_the_model(reference: Reference, tiny_bundle_fp32: Bundle) -> None:
    patches = image(tiny_bundle_fp32, (4, 6))
    features = reference.features(patches)
    assert features.grid == (2, 3)
    assert features.index == patches.index
    with torch.no_grad():
        out = reference.model.model.visual(
            torch.from_numpy(patches.values), grid_thw=torch.tensor([[1, 4, 6]]), return_dict=True
        )
    np.testing.assert_array_equal(features.embeds, out.pooler_output.numpy())
    np.testing.assert_array_equal(features.deepstack, torch.stack(list(out.deepstack_features)).numpy())


def test_a_caption_ends_before_the_first_stop_token() -> None:
    logits = np.zeros((4, 9), np.float32)
    assert Continuation((5, 7, 8, 7), logits).caption_ids((8, 7)) == (5,)
    assert Continuation((5, 1, 1, 1), logits).caption_ids((8, 7)) == (5, 1, 1, 1)
    assert Continuation((7, 1, 1, 1), logits).caption_ids((7,)) == ()


def test_greedy_goes_on_after_a_stop_token(
    reference: Reference, prompt: PromptTemplate, tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = image(tiny_bundle_fp32, (4, 4))
    expected = reference.greedy(patches, prompt, STEPS)
    config = reference.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", [expected.token_ids[1]])
    assert reference.greedy(patches, prompt, STEPS).token_ids == expected.token_ids
    assert reference.model.generation_config is config


def free(monkeypatch: pytest.MonkeyPatch, share: float, checkpoint: Path) -> None:
    """Let so many bytes a weight be free, beside what is kept to spare."""
    values = sum(math.prod(tensor.shape) for tensor in read_index(checkpoint).values())
    monkeypatch.setattr(module, "available_memory_bytes", lambda: int(values * share) + module.SPARE_BYTES)


def test_bf16_where_fp32_does_not_fit(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free(monkeypatch, 3, tiny_checkpoint)
    assert Reference(tiny_checkpoint).dtype is ReferenceDtype.BF16
    assert "would not fit" in caplog.text
    with pytest.raises(UsageError, match="fp32"):
        Reference(tiny_checkpoint, ReferenceDtype.FP32)
    free(monkeypatch, 1, tiny_checkpoint)
    with pytest.raises(UsageError, match="bf16"):
        Reference(tiny_checkpoint)
