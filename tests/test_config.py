"""Every setting that makes no sense is refused with the range it must be in."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchcap.config import (
    DEFAULT_PROMPT,
    GenerationConfig,
    InputConfig,
    JobConfig,
    LimitConfig,
    PlacementConfig,
    Prompt,
    VisionConfig,
    VisionDtype,
)
from batchcap.errors import ExitCode, UsageError

NAN, INFINITY = float("nan"), float("inf")
INPUT = InputConfig(("pictures",))
REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (InputConfig, {"inputs": ()}, "no input was named: give a folder, picture files or Parquet files"),
    (InputConfig, {"inputs": ("a", "")}, "an input is an empty text: give a folder, picture files or Parquet files"),
    (JobConfig, {"input": INPUT, "output": ""}, "output is an empty text: name the job folder"),
    (
        JobConfig,
        {"input": INPUT, "output": "s3://b/x"},
        "output s3://b/x is an address: name a folder of this machine",
    ),
    (
        JobConfig,
        {"input": INPUT, "output": "o", "model": ""},
        "model is an empty text: name a bundle folder, or demo for the demo model",
    ),
    *((GenerationConfig, {"max_new_tokens": value}, "max_new_tokens must be at least 1") for value in (0, -1)),
    *(
        (GenerationConfig, {"temperature": value}, "temperature must be 0 (greedy) or more")
        for value in (-0.1, NAN, INFINITY)
    ),
    *((GenerationConfig, {"top_p": value}, "top_p must be above 0 and at most 1") for value in (0, 1.01, NAN)),
    (GenerationConfig, {"top_k": -1}, "top_k must be 0 (off) or more"),
    *(
        (GenerationConfig, {"repetition_penalty": value}, "repetition_penalty must be above 0 (1 is off)")
        for value in (0, -1, NAN, INFINITY)
    ),
    (
        GenerationConfig,
        {"prompt": {}},
        "prompt is a table without a prompt: give NAME = TEXT in it, or a text in its place",
    ),
    *(
        (
            GenerationConfig,
            {"prompt": {"a": "x", name: "y"}},
            f"{name!r} can't name a prompt: a name has letters, digits and _, and begins with no digit",
        )
        for name in ("", "3", "a b", "a-b", "ä", "a\n")
    ),
    (
        GenerationConfig,
        {"prompt": {"Short": "x", "long": "y", "short": "z"}},
        "several prompts are called Short and short: give each another name",
    ),
    (VisionConfig, {"max_visual_tokens": 3}, "max_visual_tokens must be at least 4"),
    (VisionConfig, {"max_image_pixels": 1023}, "max_image_pixels must be at least 1024"),
    *(
        (PlacementConfig, {name: 0}, f"{name} must be at least 1")
        for name in ("decoders", "slots", "patch_budget", "queue_mib", "rows_per_part")
    ),
    *(
        (PlacementConfig, {name: -1}, f"{name} must be 0 (automatic) or more")
        for name in ("decoder_threads", "vision_threads")
    ),
    (LimitConfig, {"limit": -1}, "limit must be 0 (all) or more"),
    (LimitConfig, {"limit": 2**63}, "limit must be at most 9223372036854775807"),
    *((LimitConfig, {"max_runtime_s": value}, "max_runtime_s must be 0 (no limit) or more") for value in (-1, NAN)),
    *((LimitConfig, {"max_error_rate": value}, "max_error_rate must be between 0 and 1") for value in (-0.1, 1.1, NAN)),
]


@pytest.mark.parametrize(("kind", "values", "message"), REFUSED)
def test_values_refused(kind: Callable[..., Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        kind(**values)
    assert str(caught.value) == message
    assert caught.value.exit_code is ExitCode.USAGE


def test_the_limits_themselves_are_accepted() -> None:
    GenerationConfig(max_new_tokens=1, temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=0.01)
    VisionConfig(max_visual_tokens=4, max_image_pixels=1024)
    PlacementConfig(decoders=1, slots=1, patch_budget=1, queue_mib=1, rows_per_part=1)
    LimitConfig(limit=0, max_runtime_s=0, max_error_rate=0)
    LimitConfig(max_error_rate=1)


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, False),
        ({"top_k": 5, "top_p": 0.5}, False),
        ({"temperature": 0.1}, True),
        ({"repetition_penalty": 1.1}, True),
    ],
)
def test_logits_are_read_only_where_the_arg_max_is_not_enough(values: dict[str, Any], needed: bool) -> None:
    assert GenerationConfig(**values).needs_logits is needed


def test_prompts_are_asked_in_their_order() -> None:
    assert GenerationConfig().prompts == (Prompt(DEFAULT_PROMPT),)
    assert GenerationConfig("a=b").prompts == (Prompt("a=b"),)
    several = GenerationConfig({"z": "Last?", "a_1": "First?"})
    assert several.prompts == (Prompt("Last?", "z"), Prompt("First?", "a_1"))
    assert several.prompt_names == ("z", "a_1")


def test_a_configuration_is_plain_json() -> None:
    config = JobConfig(INPUT, "o", vision=VisionConfig(dtype=VisionDtype.BF16))
    content = json.loads(json.dumps(config.to_dict()))
    assert content["vision"]["dtype"] == "bf16"
    assert content["input"]["inputs"] == ["pictures"]
    assert content["generation"]["max_new_tokens"] == 128
