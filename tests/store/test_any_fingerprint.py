"""Equal settings are the same job, any other are not, and the message names exactly those that differ."""

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.config import GenerationConfig, InputConfig, JobConfig, LimitConfig, PlacementConfig, VisionConfig
from batchcap.core.errors import NotSameJobError
from batchcap.store.fingerprint import check_same_job, fingerprint_of
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from tests.store.records import caption_row

# Also what is no UTF-8: a path of the command line may have such bytes, and Python has a half character for each.
HALF_CHARACTERS = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
TEXT = st.text(st.characters(codec="utf-8") | HALF_CHARACTERS, max_size=12)
NAME = st.sampled_from(["a", "b", "short", "long"])
# What decides the words or the columns of the output, by the name that a message has for it.
DECIDING: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["m", "n"]),
    "prompt": TEXT | st.dictionaries(NAME, TEXT, min_size=1, max_size=3),
    "max-new-tokens": st.integers(1, 5),
    "temperature": st.sampled_from([0.0, 0.1, 0.1 + 2**-55, 1.0]),
    "top-p": st.floats(0, 1, exclude_min=True),
    "top-k": st.integers(0, 3),
    "repetition-penalty": st.floats(0.5, 2),
    "seed": st.integers(-(2**40), 2**40),
    "loop-stop": st.booleans(),
    "max-visual-tokens": st.integers(4, 8),
    "vision-backend": st.sampled_from(["torch", "onnx"]),
    "vision-dtype": st.sampled_from(["fp32", "bf16"]),
    "max-image-pixels": st.integers(1024, 1030),
    "image-column": st.none() | TEXT,
    "id-column": st.none() | TEXT,
    "image-root": st.none() | TEXT,
    "keep-columns": st.lists(TEXT, max_size=3).map(tuple),
    "images": st.sampled_from([None, "first", "each"]),
    "where": st.none() | st.sampled_from(["a > 1", "b"]),
    "sample": st.integers(0, 3),
    "sample-seed": st.integers(0, 3),
    "shard": st.sampled_from([None, "1/2", "2/2"]),
}
OTHERS = st.fixed_dictionaries(
    {
        "inputs": st.lists(st.text(min_size=1), min_size=1, max_size=3).map(tuple),
        "allow_remote": st.booleans(),
        "placement": st.builds(PlacementConfig, decoders=st.integers(1, 9), rows_per_part=st.integers(1, 9)),
        "limits": st.builds(LimitConfig, limit=st.integers(0, 9), max_runtime_s=st.floats(0, 9)),
    }
)


def job(deciding: dict[str, Any], others: dict[str, Any]) -> tuple[JobConfig, dict[str, Any]]:
    """A configuration and its fingerprint."""
    value = {name.replace("-", "_"): one for name, one in deciding.items()}
    generation = {name: value[name] for name in GenerationConfig.__dataclass_fields__}
    columns = {name: value[name] for name in InputConfig.__dataclass_fields__ if name not in others}
    config = JobConfig(
        InputConfig(others["inputs"], allow_remote=others["allow_remote"], **columns),
        output="o",
        generation=GenerationConfig(**generation),
        vision=VisionConfig(value["max_visual_tokens"], max_image_pixels=value["max_image_pixels"]),
        placement=others["placement"],
        limits=others["limits"],
    )
    return config, fingerprint_of(config, value["model"], (value["vision_backend"], value["vision_dtype"]))


def in_order(value: object) -> object:
    """Prompts in another order are other columns."""
    return list(value.items()) if isinstance(value, dict) else value


def differences(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in DECIDING if in_order(before[name]) != in_order(after[name])}


JOB, CHANGES = st.fixed_dictionaries(DECIDING), st.fixed_dictionaries({}, optional=DECIDING)


@settings(max_examples=200)
@given(JOB, CHANGES, OTHERS, OTHERS)
def test_equal_settings_and_only_they_have_equal_fingerprints(
    before: dict[str, Any], changes: dict[str, Any], others: dict[str, Any], other_others: dict[str, Any]
) -> None:
    after = {**before, **changes}
    (_config, one), (_later, other) = job(before, others), job(after, other_others)
    assert set(one) == set(DECIDING)
    assert {name for name in one if one[name] != other[name]} == differences(before, after)


@settings(max_examples=20)
@given(JOB, CHANGES, OTHERS, OTHERS)
def test_what_differs_from_the_stored_job_is_named(
    before: dict[str, Any], changes: dict[str, Any], others: dict[str, Any], other_others: dict[str, Any]
) -> None:
    after = {**before, **changes}
    differing = differences(before, after)
    (config, fingerprint), (later, later_fingerprint) = job(before, others), job(after, other_others)
    with tempfile.TemporaryDirectory() as name:
        folder = JobFolder.open_or_create(Path(name) / "out")
        check_same_job(folder, fingerprint, config)
        with closing(Journal.open(folder.journal_path)) as journal:
            journal.add([(0, caption_row(0))])
        if not differing:
            check_same_job(folder, later_fingerprint, later)
            return
        with pytest.raises(NotSameJobError) as caught:
            check_same_job(folder, later_fingerprint, later)
    lines = [line for line in str(caught.value).split("\n") if line.startswith("  --")]
    assert {line[4:].partition(":")[0] for line in lines} == differing
    assert str(caught.value).encode(errors="backslashreplace")
