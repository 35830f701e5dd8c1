"""Owns how a setting's value is written where it is no plain value: on the command line, and in a job file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchcap.commands.begun import BegunJob
from batchcap.commands.given_prompt import read_prompt, read_prompt_options
from batchcap.core.setting import Form


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the meaning of a value depends on besides its text.

    Attributes:
        base: folder that relative paths in it start from.
        begun: the job that the output may hold.
    """

    base: Path = Path()
    begun: BegunJob = field(default_factory=lambda: BegunJob(None))


def _as_it_is(value: Any, _around: Surroundings) -> Any:  # noqa: ANN401 - any setting's
    return value


def _names(text: str, _around: Surroundings) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True, slots=True)
class Writing:
    """How the values of a form are written.

    Attributes:
        typed: type of the option, where it is not the setting's.
        shown: the default as somebody would type it.
        read: the value that an option means.
        read_in_file: the value that a job file means by a value of the setting's type.
    """

    typed: Any = None
    shown: Callable[[Any], Any] = lambda default: default
    read: Callable[[Any, Surroundings], Any] = _as_it_is
    read_in_file: Callable[[Any, Surroundings], Any] = _as_it_is


WRITINGS: Mapping[Form, Writing] = {
    Form.VALUE: Writing(),
    Form.REPEATED: Writing(
        typed=list[str] | None,
        shown=lambda default: list(default) or None,
        read=lambda texts, _around: tuple(texts or ()),
    ),
    Form.COMMAS: Writing(typed=str, shown=",".join, read=_names),
    Form.PROMPTS: Writing(
        typed=list[str],
        shown=lambda default: [default],
        read=lambda texts, around: read_prompt_options(texts, around.base, around.begun),
        read_in_file=lambda given, around: read_prompt(given, around.base, around.begun),
    ),
}
