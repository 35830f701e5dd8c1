"""Owns job files: a TOML file becomes the same `JobConfig` as a command line does."""

import dataclasses
import stat
import tomllib
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from batchcap.config import DEMO_MODEL, LARGEST_NUMBER, InputConfig, JobConfig
from batchcap.errors import UsageError
from batchcap.manifest.source import is_address
from batchcap.profiles import names_in_tables

# What the loader fills in itself.
_NOT_KEYS = frozenset({"given"})
# A job with a thousand long prompts fits many times; what is larger is something else by mistake.
_LARGEST_BYTES = 4 * 1024 * 1024


def load_job_file(path: Path) -> JobConfig:
    """Read a job file.

    Relative inputs, output, model and image root start from the job file's folder, so that cron can run it from
    anywhere.

    Raises:
        UsageError: the file is missing, is not TOML, or has an unknown key or a value of the wrong type.
    """
    try:
        data = tomllib.loads(_text_of(path))
    except RecursionError:
        raise UsageError(f"{path} is not a job file: its arrays or tables are nested too deeply") from None
    except ValueError as error:  # not only TOMLDecodeError: a number of ten thousand digits is another one
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    if "input" not in data or "output" not in data:
        raise UsageError(f"{path} needs an [input] table with `inputs`, and `output`; see jobs/ for examples")
    config: JobConfig = _build(JobConfig, data, str(path))
    given = names_in_tables(data.get("placement", {}), data.get("vision", {}))
    return _anchored(dataclasses.replace(config, given=given), path.resolve().parent)


def _text_of(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise UsageError(f"can't read the job file {path}: it is a folder, pipe or device, not a file")
        if status.st_size > _LARGEST_BYTES:
            raise UsageError(f"{path} is not a job file: it is larger than {_LARGEST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with the mark
    except FileNotFoundError:
        raise UsageError(f"no job file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the job file {path}: {error}") from None


def _anchored(config: JobConfig, base: Path) -> JobConfig:
    """The same job with its relative paths made absolute."""

    def anchor(value: str) -> str:
        if "\0" in value:
            raise UsageError(f"{value!r} is no path: a path has no NUL in it")
        if is_address(value):
            return value  # refused as such, not as a file that does not exist
        try:
            return str(base / Path(value).expanduser())
        except RuntimeError as error:
            raise UsageError(f"{value!r} is no path: {error}") from None

    given = config.input
    anchored_input: InputConfig = dataclasses.replace(
        given,
        inputs=tuple(anchor(one) for one in given.inputs),
        image_root=anchor(given.image_root) if given.image_root else None,
    )
    model = config.model if config.model in (None, DEMO_MODEL) else anchor(config.model)
    return dataclasses.replace(config, input=anchored_input, output=anchor(config.output), model=model)


def _build(kind: type[Any], data: dict[str, Any], where: str) -> Any:  # noqa: ANN401 - one loader for every dataclass
    """A dataclass from a table; unknown keys are refused, since a misspelt option must not run with its default."""
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in _NOT_KEYS}
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known here: {', '.join(hints)}")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError:
        required = [
            each.name
            for each in dataclasses.fields(kind)
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        ]
        raise UsageError(f"{where} needs {', '.join(f'`{name}`' for name in required)}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - values come from TOML
    """A TOML value as the type its field wants."""
    if isinstance(hint, types.UnionType):  # only `X | None` and `X | dict` occur, and TOML has no null
        kinds = {typing.get_origin(one) is dict: one for one in typing.get_args(hint) if one is not types.NoneType}
        hint = kinds.get(isinstance(value, dict), kinds[False])
    if typing.get_origin(hint) is dict:
        if not all(isinstance(one, str) for one in value.values()):
            raise UsageError(f"{where} must be a text, or a table of texts")
        return dict(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table")
        return _build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise UsageError(f"{where} must be a list of strings")
        return tuple(value)
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: type[Any], value: Any, where: str) -> Any:  # noqa: ANN401 - values come from TOML
    if issubclass(hint, Enum):
        choices = [str(one.value) for one in hint]
        if value not in choices:
            raise UsageError(f"{where} must be one of {', '.join(choices)}")
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:  # not isinstance: a TOML boolean is not a number
        raise UsageError(f"{where} must be of type {hint.__name__}, not {type(value).__name__}")
    if hint is int and abs(value) > LARGEST_NUMBER:
        raise UsageError(f"{where} is too large a number")
    return value
