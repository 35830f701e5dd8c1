"""Owns the shape of job files: the configuration's dataclasses as pydantic models, and the JSON Schema for editors.

Only job files need pydantic here: importing it takes longer than printing a help text.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from batchcap.commands.begun import BegunJob
from batchcap.commands.given_prompt import read_prompt
from batchcap.config import JobConfig
from batchcap.core.setting import MAX_NUMBER, Setting, SettingsError, settings_of

# What the loader fills in itself.
NOT_KEYS = frozenset({"explicit"})
# Type of the errors whose message is ours, in words that follow the key.
OUR_FAULT = "batchcap"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the meaning of a job file depends on besides its text.

    Attributes:
        base: the file's folder.
        begun: the job that its output may hold.
    """

    base: Path
    begun: BegunJob


@cache
def model_of(kind: Any) -> type[BaseModel]:  # noqa: ANN401 - a dataclass
    """The pydantic model of a dataclass of the configuration; its fields are the keys of a job file."""
    known = settings_of(kind)
    hints = typing.get_type_hints(kind)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in NOT_KEYS:
            continue
        setting, hint = known[field.name], hints[field.name]
        if dataclasses.is_dataclass(hint):
            table = model_of(typing.cast("Any", hint))
            fields[setting.key] = (table, ... if _is_needed(field) else Field(default_factory=table.model_construct))
        else:
            default = ... if _is_needed(field) else field.default
            schema: Any = _range_schema(setting)  # of JSON types
            value = Field(default, json_schema_extra=schema)
            fields[setting.key] = (Annotated[_toml_type(hint), AfterValidator(_validator(setting))], value)
    config = ConfigDict(strict=True, extra="forbid")
    model: type[BaseModel] = create_model(kind.__name__, __config__=config, **fields)
    return model


def build(kind: type[Any], model: BaseModel) -> Any:  # noqa: ANN401 - one loader for every dataclass
    """The dataclass that a validated model describes; what was not given has the dataclass's default."""
    values = {}
    for name, setting in settings_of(kind).items():
        if setting.key in model.model_fields_set:
            value = getattr(model, setting.key)
            hint = typing.get_type_hints(kind)[name]
            values[name] = build(hint, value) if isinstance(value, BaseModel) else value
    return kind(**values)


def given_names(kind: type[Any], model: BaseModel) -> list[str]:
    """Fields of the dataclass that the file gives."""
    return [name for name, setting in settings_of(kind).items() if setting.key in model.model_fields_set]


def json_schema(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """The JSON Schema of job files. Old names are in it too, marked as deprecated.

    Args:
        descriptions: a text for a person by key.
    """
    schema = model_of(JobConfig).model_json_schema()
    tables = {"JobConfig": schema, **schema["$defs"]}
    hints = typing.get_type_hints(JobConfig).values()
    kinds: list[Any] = [JobConfig, *(hint for hint in hints if dataclasses.is_dataclass(hint))]
    for kind in kinds:
        properties = tables[kind.__name__]["properties"]
        for setting in settings_of(kind).values():
            if setting.key in properties:
                _describe(properties, setting, descriptions.get(setting.key, ""))
    _drop_titles(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "batchcap job file", **schema}


def _describe(properties: dict[str, Any], setting: Setting, description: str) -> None:
    if description:
        properties[setting.key]["description"] = description
    if properties[setting.key].get("default", "") is None:
        del properties[setting.key]["default"]  # TOML has no null
    for old in setting.old_keys:
        properties[old] = {**properties[setting.key], "description": f"Old name of {setting.key}.", "deprecated": True}


def _drop_titles(schema: Any) -> None:  # noqa: ANN401 - JSON
    """Titles repeat the keys; editors would show both."""
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for value in schema.values():
            _drop_titles(value)
    elif isinstance(schema, list):
        for value in schema:
            _drop_titles(value)


def _is_needed(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _toml_type(hint: Any) -> Any:  # noqa: ANN401 - a type
    """The type as TOML has it: no null; words for enums, lists for tuples; else strict, so that true is no number."""
    if hint == str | None:
        return str
    if (isinstance(hint, type) and issubclass(hint, Enum)) or typing.get_origin(hint) is tuple:
        return Annotated[hint, Strict(strict=False)]
    return hint


def _validator(setting: Setting) -> Any:  # noqa: ANN401 - a function for pydantic
    def check(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - any setting's
        around = typing.cast("Surroundings", info.context)
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise _fault("is too large a number")
        if said := setting.fault(value) or setting.fault_in_new_job(value, around.begun.value):
            raise _fault(said)
        if setting.key == "prompt":
            try:
                return read_prompt(value, around.base, around.begun)
            except SettingsError as error:
                raise _fault("; ".join(mistake.text for mistake in error.mistakes)) from None
        return value

    return check


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError(OUR_FAULT, "{text}", {"text": text})


def _range_schema(setting: Setting) -> dict[str, Any]:
    bounds = {"minimum": setting.at_least, "exclusiveMinimum": setting.above, "maximum": setting.at_most}
    return {name: bound for name, bound in bounds.items() if bound is not None and bound < MAX_NUMBER}
