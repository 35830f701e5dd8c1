"""Owns job files: a TOML file becomes the same `JobConfig` as a command line does."""

import dataclasses
import shlex
import stat
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from batchcap.commands.begun import BegunJob
from batchcap.commands.forms import Surroundings
from batchcap.commands.jobmistakes import JobText, mistakes_of
from batchcap.config import DEMO_MODEL, InputConfig, JobConfig
from batchcap.core.errors import UsageError
from batchcap.core.setting import SettingsError
from batchcap.core.text import is_address
from batchcap.engines.profiles import NAMES

# A job with a thousand long prompts fits many times; what is larger is something else by mistake.
_MAX_BYTES = 4 * 1024 * 1024


def load_job_file(path: Path) -> JobConfig:
    """Read a job file.

    Relative inputs, output, other forms, model, image root, metrics, events and the program of on_end start from the
    job file's folder, so that cron can run it from anywhere.

    Raises:
        UsageError: the file is missing, is not TOML, or has mistakes; all of them are named at once.
    """
    from pydantic import ValidationError

    from batchcap.commands.jobmodel import OUR_FAULT, build, given_keys, model_of

    text = JobText.of(_parsed(path))
    base = path.resolve().parent
    try:
        around = Surroundings(base, _begun(text.data.get("output"), base))
        model: Any = model_of(JobConfig).model_validate(text.data, context=around)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise _mistaken(path, [*text.doubles, *mistakes_of(errors, text, OUR_FAULT)]) from None
    if text.doubles:
        raise _mistaken(path, text.doubles)
    try:
        config: JobConfig = build(JobConfig, model)
    except SettingsError as error:  # settings that do not go together
        raise _mistaken(path, [f"outputs.{one.key} {one.text}" for one in error.mistakes]) from None
    explicit = given_keys(model).intersection(NAMES)
    return _anchored(dataclasses.replace(config, explicit=frozenset(explicit)), base)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text_of(path))
    except RecursionError:
        raise UsageError(f"{path} is not a job file: its arrays or tables are nested too deeply") from None
    except ValueError as error:  # not only TOMLDecodeError: a number of ten thousand digits is another one
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def _mistaken(path: Path, mistakes: list[str]) -> UsageError:
    if len(mistakes) == 1:
        return UsageError(f"{path}: {mistakes[0]}")
    lines = "".join(f"\n  {mistake}" for mistake in mistakes)
    return UsageError(f"{path} has {len(mistakes)} mistakes:{lines}")


def _begun(output: object, base: Path) -> BegunJob:
    """The job that a file is about, whose settings may be such as no new job could have."""
    with suppress(UsageError):
        return BegunJob(_anchor(output, base) if isinstance(output, str) else None)
    return BegunJob(None)


def _text_of(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise UsageError(f"can't read the job file {path}: it is a folder, pipe or device, not a file")
        if status.st_size > _MAX_BYTES:
            raise UsageError(f"{path} is not a job file: it is larger than {_MAX_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with the mark
    except FileNotFoundError:
        raise UsageError(f"no job file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the job file {path}: {error}") from None


def _anchored(config: JobConfig, base: Path) -> JobConfig:
    """The same job with its relative paths made absolute."""
    given = config.input
    anchored_input: InputConfig = dataclasses.replace(
        given,
        inputs=tuple(_anchor(one, base) for one in given.inputs),
        image_root=_anchor(given.image_root, base) if given.image_root else None,
    )
    model = config.model if config.model in (None, DEMO_MODEL) else _anchor(config.model, base)
    outputs = dataclasses.replace(
        config.outputs,
        also=tuple(_anchored_form(one, base) for one in config.outputs.also),
        html_pages=_anchor(config.outputs.html_pages, base) if config.outputs.html_pages else None,
    )
    told = config.operations
    operations = dataclasses.replace(
        told,
        metrics=_anchor(told.metrics, base) if told.metrics else None,
        events=_anchor(told.events, base) if told.events else None,
        on_end=_anchored_command(told.on_end, base) if told.on_end else None,
    )
    output = _anchor(config.output, base)
    return dataclasses.replace(
        config, input=anchored_input, output=output, model=model, outputs=outputs, operations=operations
    )


def _anchored_command(command: str, base: Path) -> str:
    """The command with its program anchored, if that is named by a path; others are looked for in PATH."""
    program, *rest = shlex.split(command)
    return shlex.join([_anchor(program, base), *rest]) if "/" in program else command


def _anchored_form(form: str, base: Path) -> str:
    name, colon, where = form.partition(":")
    return f"{name}:{_anchor(where, base)}" if colon else form


def _anchor(value: str, base: Path) -> str:
    if "\0" in value:
        raise UsageError(f"{value!r} is no path: a path has no NUL in it")
    if is_address(value):
        return value  # refused as such, not as a file that does not exist
    try:
        return str(base / Path(value).expanduser())
    except RuntimeError as error:
        raise UsageError(f"{value!r} is no path: {error}") from None
