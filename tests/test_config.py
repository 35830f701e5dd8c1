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
    OperationsConfig,
    PlacementConfig,
    ResumeConfig,
    Retry,
    VisionConfig,
    VisionDtype,
)
from batchcap.core.errors import ExitCode, UsageError
from batchcap.core.prompts import Prompt
from batchcap.core.setting import require_sense_in_new_job

NAN, INFINITY = float("nan"), float("inf")
INPUT = InputConfig(("pictures",))
MOST = {"decoders": 256, "slots": 4096, "patch_budget": 2**20, "queue_mib": 2**20, "rows_per_part": 10_000_000}
NAME_RULE = "a name has letters (of English), digits and _, and begins with no digit"
REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (InputConfig, {"inputs": ()}, "INPUT must not be empty: give a folder, image files or tables"),
    (
        InputConfig,
        {"inputs": ("a", "")},
        "INPUT must not be an empty text: give a folder, image files or tables",
    ),
    (JobConfig, {"input": INPUT, "output": ""}, "--output must not be an empty text: name the job folder"),
    (
        JobConfig,
        {"input": INPUT, "output": "s3://b/x"},
        "--output must be a folder of this machine, not the address s3://b/x",
    ),
    (
        JobConfig,
        {"input": INPUT, "output": "o", "model": ""},
        "--model must not be an empty text: name a bundle folder, or demo for the demo model",
    ),
    *(
        (GenerationConfig, {"max_new_tokens": value}, f"--max-new-tokens must be at least 1, not {value}")
        for value in (0, -1)
    ),
    *(
        (GenerationConfig, {"temperature": value}, f"--temperature must be 0 (greedy) or more, not {value}")
        for value in (-0.1, NAN)
    ),
    (GenerationConfig, {"temperature": INFINITY}, "--temperature must be at most 2, not inf"),
    *((GenerationConfig, {"top_p": value}, f"--top-p must be above 0, not {value}") for value in (0, NAN)),
    (GenerationConfig, {"top_p": 1.01}, "--top-p must be at most 1, not 1.01"),
    (GenerationConfig, {"top_k": -1}, "--top-k must be 0 (off) or more, not -1"),
    *(
        (GenerationConfig, {"repetition_penalty": value}, f"--repetition-penalty must be above 0, not {value}")
        for value in (0, -1, NAN)
    ),
    (GenerationConfig, {"repetition_penalty": INFINITY}, "--repetition-penalty must be at most 10, not inf"),
    (
        GenerationConfig,
        {"prompt": {}},
        "--prompt is a table without a prompt: give NAME = TEXT in it, or a text in its place",
    ),
    *(
        (
            GenerationConfig,
            {"prompt": {"a": "x", name: "y"}},
            f"--prompt must not be called {name!r}: {NAME_RULE}",
        )
        for name in ("", "3", "a b", "a-b", "ä", "a\n")
    ),
    (
        GenerationConfig,
        {"prompt": {"Short": "x", "long": "y", "short": "z"}},
        "--prompt has several prompts called Short and short: give each another name",
    ),
    (VisionConfig, {"max_visual_tokens": 3}, "--max-visual-tokens must be at least 4, not 3"),
    (VisionConfig, {"max_image_pixels": 1023}, "--max-image-pixels must be at least 1024, not 1023"),
    (
        VisionConfig,
        {"max_visual_tokens": 3, "max_image_pixels": 0},
        "--max-visual-tokens must be at least 4, not 3; --max-image-pixels must be at least 1024, not 0",
    ),
    *(
        (PlacementConfig, {name: value}, f"--{name.replace('_', '-')} must be {bound}, not {value}")
        for name, most in MOST.items()
        for value, bound in ((0, "at least 1"), (most + 1, f"at most {most}"))
    ),
    *(
        (PlacementConfig, {name: value}, f"--{name.replace('_', '-')} must be {bound}, not {value}")
        for name in ("decoder_threads", "vision_threads")
        for value, bound in ((-1, "0 (automatic) or more"), (1025, "at most 1024"))
    ),
    (PlacementConfig, {"slots": "16"}, "--slots must be a number"),
    *(
        (OperationsConfig, {"metrics": name}, "--metrics must end in .prom: node_exporter reads no other files")
        for name in ("captions.txt", "x/.prom", ".prom")
    ),
    (OperationsConfig, {"metrics": ""}, "--metrics must name a file"),
    (
        OperationsConfig,
        {"events": "s3://b/x"},
        "--events must be a file of this machine, not the address s3://b/x",
    ),
    *((OperationsConfig, {"on_end": text}, "--on-end must not be empty: name a program") for text in ("", " ", "''")),
    (
        OperationsConfig,
        {"on_end": "mail 'x"},
        "--on-end must be a command as a shell splits it into words: no closing quotation",
    ),
    (PlacementConfig, {"slots": 10**5000}, "--slots must be at most 4096"),
    (LimitConfig, {"limit": -1}, "--limit must be 0 (all) or more, not -1"),
    (LimitConfig, {"limit": 2**63}, "--limit must be at most 9223372036854775807"),
    *(
        (LimitConfig, {"max_runtime_s": value}, f"--max-runtime must be 0 (no limit) or more, not {value}")
        for value in (-1, NAN)
    ),
    *(
        (LimitConfig, {"image_timeout_s": value}, f"--image-timeout must be above 0, not {value}")
        for value in (0, -1, NAN)
    ),
    *(
        (LimitConfig, {"max_error_rate": value}, f"--max-error-rate must be at least 0, not {value}")
        for value in (-0.1, NAN)
    ),
    (LimitConfig, {"max_error_rate": 1.1}, "--max-error-rate must be at most 1, not 1.1"),
    (
        ResumeConfig,
        {"retry": ("failed", "truncate")},
        f"--retry must be some of {', '.join(Retry)}, not 'truncate': did you mean 'truncated'?",
    ),
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
    PlacementConfig(**MOST, decoder_threads=1024, vision_threads=1024)
    LimitConfig(limit=0, max_runtime_s=0, max_error_rate=0)
    LimitConfig(max_error_rate=1)


# What decides captions: the largest of a new job, and one that only a job may have that was begun with it.
ABSURD: list[tuple[Any, str, Any, Any]] = [
    (GenerationConfig, "max_new_tokens", 2**20, 10**9),
    (GenerationConfig, "temperature", 2.0, 9.0),
    (GenerationConfig, "top_k", 2**20, 10**9),
    (GenerationConfig, "repetition_penalty", 10.0, 11.0),
    (VisionConfig, "max_visual_tokens", 2**16, 10**9),
    (VisionConfig, "max_image_pixels", 2**34, 10**12),
]


@pytest.mark.parametrize(("kind", "name", "most", "absurd"), ABSURD)
def test_what_decides_captions_may_be_absurd_in_a_job_begun_with_it(
    kind: Any, name: str, most: Any, absurd: Any
) -> None:
    def nothing(_key: str) -> None: ...

    require_sense_in_new_job(kind(**{name: most}), begun=nothing)
    config = kind(**{name: absurd})
    require_sense_in_new_job(config, begun={name: absurd}.get)
    for begun in (nothing, {name: absurd + 1}.get):
        with pytest.raises(UsageError) as caught:
            require_sense_in_new_job(config, begun=begun)
        option = f"--{name.replace('_', '-')}"
        assert str(caught.value) == f"{option} must be at most {int(most)}, not {int(absurd)}"


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
    assert GenerationConfig(**values).sampling.needs_logits is needed


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
