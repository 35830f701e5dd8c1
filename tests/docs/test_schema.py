"""The JSON Schema for editors is the one of the code, and takes what the loader takes."""

import json
import runpy
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from batchcap.commands.jobfile import load_job_file
from batchcap.core.errors import UsageError
from tests.docs.markdown import PROJECT, blocks, section, text_of

SCHEMA: dict[str, Any] = json.loads(text_of("docs/job.schema.json"))
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """What is wrong with a value, by the words of JSON Schema that ours has."""
    if "$ref" in schema:
        return faults(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], where)
    if "anyOf" in schema:
        return min((faults(value, one, where) for one in schema["anyOf"]), key=len)
    kinds = TYPES[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return [f"{where} is no {schema['type']}"]
    found = [f"{where} is none of the words"] if value not in schema.get("enum", [value]) else []
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema["additionalProperties"]
        found += [f"{where} lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, one in value.items():
            inner = known.get(name, others)
            found += faults(one, inner, f"{where}.{name}") if inner else [f"{where}.{name} is unknown"]
    if isinstance(value, list):
        found += [fault for one in value for fault in faults(one, schema["items"], where)]
    if isinstance(value, int | float):
        is_inside = schema.get("minimum", value) <= value <= schema.get("maximum", value)
        found += [] if is_inside and value != schema.get("exclusiveMinimum") else [f"{where} is out of range"]
    return found


def test_the_schema_is_the_one_of_the_code() -> None:
    made = runpy.run_path(str(PROJECT / "docs" / "make_schema.py"))
    assert text_of("docs/job.schema.json") == made["page"](), "run `make docs`"


@pytest.mark.parametrize("path", sorted((PROJECT / "jobs").glob("*.toml")), ids=lambda path: path.name)
def test_the_job_files_follow_it(path: Path) -> None:
    assert faults(tomllib.loads(path.read_text(encoding="utf-8")), SCHEMA) == []


def test_the_long_example_follows_it() -> None:
    (example,) = blocks(section(text_of("docs/user-guide.md"), "## Job files"), "toml")
    assert faults(tomllib.loads(example), SCHEMA) == []


SMALLEST = 'output = "o"\n[input]\ninputs = ["p"]\n'


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("", True),
        ("[speed]\nslots = 3", True),
        ("[placement]\nslots = 3", True),
        ("[limits]\npicture_timeout_s = 3", True),
        ("[generation.prompt]\na = 'x'", True),
        ("[generation]\ntemperature = 1", True),
        ("[speed]\nslots = 0", False),
        ("[speed]\nslots = 5000", False),
        ("[speed]\nslots = true", False),
        ("[limits]\nimage_timeout = 0", False),
        ("[vision]\nvision_dtype = 'fp16'", False),
        ("[inputs]\n", False),
        ("[generation]\nmax_tokens = 1", False),
        ("[generation.prompt]\na = 1", False),
    ],
)
def test_it_takes_what_the_loader_takes(tmp_path: Path, text: str, is_right: bool) -> None:
    job = tmp_path / "job.toml"
    job.write_text(SMALLEST + text)
    assert (faults(tomllib.loads(SMALLEST + text), SCHEMA) == []) is is_right
    with nullcontext() if is_right else pytest.raises(UsageError):
        load_job_file(job)


def test_every_setting_of_it_is_described() -> None:
    for table in (SCHEMA, *SCHEMA["$defs"].values()):
        for name, one in table.get("properties", {}).items():
            assert "description" in one or name in (
                "generation",
                "input",
                "limits",
                "operations",
                "outputs",
                "resume",
                "speed",
                "vision",
            ), name
