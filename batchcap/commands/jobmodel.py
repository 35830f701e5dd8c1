"""Owns the shape of job files: the configuration's dataclasses as pydantic models, and the JSON Schema for editors.

Only job files need pydantic here: importing it takes longer than printing a help text.
"""

import typing
from enum import Enum
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from batchcap.commands.forms import WRITINGS, Surroundings
from batchcap.config import JobConfig
from batchcap.core.setting import MAX_NUMBER, NEEDED, Setting, SettingsError, fields_of, settings_of

# Type of the errors whose message is ours, in words that follow the key.
OUR_FAULT = "batchcap"


@cache
def model_of(kind: Any) -> type[BaseModel]:  # noqa: ANN401 - a dataclass
    """The pydantic model of a dataclass of the configuration; its fields are the keys of a job file."""
    fields: dict[str, Any] = {}
    for field in fields_of(kind):
        if field.is_table:
            table = model_of(field.hint)
            default = ... if field.default is NEEDED else Field(default_factory=table.model_construct)
            fields[field.setting.key] = (table, default)
        else:
            schema: Any = _range_schema(field.setting)  # of JSON types
            value = Field(... if field.default is NEEDED else field.default, json_schema_extra=schema)
            fields[field.setting.key] = (
                Annotated[_toml_type(field.hint), AfterValidator(_validator(field.setting))],
                value,
            )
    config = ConfigDict(strict=True, extra="forbid")
    model: type[BaseModel] = create_model(kind.__name__, __config__=config, **fields)
    return model


def build(kind: type[Any], model: BaseModel) -> Any:  # noqa: ANN401 - one loader for every dataclass
    """The dataclass that a validated model describes; what was not given has the dataclass's default."""
    values = {}
    for field in fields_of(kind):
        if field.setting.key in model.model_fields_set:
            value = getattr(model, field.setting.key)
            values[field.name] = build(field.hint, value) if field.is_table else value
    return kind(**values)


def given_keys(model: BaseModel) -> set[str]:
    """Keys that the file gives, those of its tables too."""
    values = ((key, getattr(model, key)) for key in model.model_fields_set)
    return {name for key, value in values for name in (given_keys(value) if isinstance(value, BaseModel) else {key})}


def json_schema(kind: Any = JobConfig) -> dict[str, Any]:  # noqa: ANN401 - a dataclass
    """The JSON Schema of job files. Old names are in it too, marked as deprecated.

    Args:
        kind: the configuration.
    """
    schema = model_of(kind).model_json_schema()
    tables: dict[Any, Any] = {kind: schema}
    tables |= {one.hint: schema["$defs"][one.hint.__name__] for one in fields_of(kind) if one.is_table}
    for table, content in tables.items():
        for setting in settings_of(table).values():
            _describe(content["properties"], setting)
    _drop_titles(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "batchcap job file", **schema}


def _describe(properties: dict[str, Any], setting: Setting) -> None:
    if description := setting.file_help or setting.help:
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
        try:
            return WRITINGS[setting.form].read_in_file(value, around)
        except SettingsError as error:
            raise _fault("; ".join(mistake.text for mistake in error.mistakes)) from None

    return check


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError(OUR_FAULT, "{text}", {"text": text})


def _range_schema(setting: Setting) -> dict[str, Any]:
    bounds = {"minimum": setting.at_least, "exclusiveMinimum": setting.above, "maximum": setting.largest}
    return {name: bound for name, bound in bounds.items() if bound is not None and bound < MAX_NUMBER}
