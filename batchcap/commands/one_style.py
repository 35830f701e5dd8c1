"""Owns how a value of the command line that can't be read is refused: in the words of every other wrong setting."""

import inspect
import typing
from enum import Enum
from typing import Any

import typer
from typer.core import TyperCommand

from batchcap.core.errors import UsageError
from batchcap.core.setting import choice_fault

_WANTED: dict[type[Any], str] = {int: "a whole number", float: "a number", bool: "true or false"}


class OneStyleCommand(TyperCommand):
    """A command whose refusals of values are one line that begins with the option's own name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own context
        """Parse the command line.

        Raises:
            UsageError: a value is not of its option's type.
        """
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if type(error) is not typer.BadParameter:  # an option that is missing has no value
                raise
            parameter: Any = error.param
            callback = inspect.unwrap(self.callback) if self.callback else None
            if parameter is None or callback is None or parameter.name not in inspect.signature(callback).parameters:
                raise
            names = [*parameter.opts, *parameter.secondary_opts]
            name = max(names, key=len) if parameter.param_type_name == "option" else parameter.human_readable_name
            hint = typing.get_type_hints(callback)[parameter.name]
            raise UsageError(f"{name} {_fault(hint, error)}") from None


def _fault(hint: Any, error: typer.BadParameter) -> str:  # noqa: ANN401 - a type
    """What is wrong with a value, in words that follow the option's name."""
    # Where typer does not say what it refused, its own words must do.
    found: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    given = found[0].get("input") if found else None
    if not isinstance(given, str):
        return f"is wrong: {error.message}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return choice_fault(given, [str(one.value) for one in hint])
    if found[0]["type"] == "greater_than_equal":
        return f"must be at least {found[0]['ctx']['ge']}, not {given}"
    if found[0]["type"] == "less_than_equal":
        return f"must be at most {found[0]['ctx']['le']}"
    return f"must be {_WANTED[hint]}, not {given!r}" if hint in _WANTED else f"is wrong: {error.message}"
