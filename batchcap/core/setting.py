"""Owns what a setting is besides its type: its name and range, and the error that names what is wrong with it."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from batchcap.core.errors import UsageError

MAX_NUMBER = 2**63 - 1  # journal and plan count in 64 bits
_METADATA_KEY = "setting"

# The value that a job was begun with, by the setting's key; None where there is no such job.
BegunValue = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a field of the configuration.

    Attributes:
        key: its name in a job file, and with dashes on the command line; "": the field's own.
        old_keys: names that job files may still have for it.
        argument: what the command line calls it where it is no option.
        at_least: smallest value.
        above: every value is larger.
        at_most: largest value.
        zero: what 0 means.
        decides_caption: a job that was begun with a larger value than `at_most` goes on with it, since its captions
            would be others with any other value.
        check: what else is wrong with a value, in words that follow its name; "" where nothing is.
    """

    key: str = ""
    old_keys: tuple[str, ...] = ()
    argument: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float = math.inf
    zero: str = ""
    decides_caption: bool = False
    check: Callable[[Any], str] | None = None

    def fault(self, value: object) -> str:
        """What is wrong with a value in any job, in words that follow the setting's name; "" where nothing is."""
        if self.check is not None and (said := self.check(value)):
            return said
        if not isinstance(value, int | float):  # of a file of ours that somebody changed
            return "must be a number" if self.at_least is not None or self.above is not None else ""
        if self.at_least is not None and not value >= self.at_least:  # NaN is not either
            least = f"{self.at_least:g}"
            said = f"{least} ({self.zero}) or more" if self.zero and self.at_least == 0 else f"at least {least}"
            return f"must be {said}{_instead_of(value)}"
        if self.above is not None and not value > self.above:
            return f"must be above {self.above:g}{_instead_of(value)}"
        if not value <= (MAX_NUMBER if self.decides_caption else self.at_most):
            return self._too_large(value)
        return ""

    def fault_in_new_job(self, value: object, begun: BegunValue) -> str:
        """What is wrong with a value unless the job was begun with it; "" where nothing is."""
        if not (self.decides_caption and isinstance(value, int | float) and value > self.at_most):
            return ""
        return "" if begun(self.key) == value else self._too_large(value)

    def _too_large(self, value: float) -> str:
        return f"must be at most {shown_number(self.at_most)}{_instead_of(value)}"


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with one setting.

    Attributes:
        key: its name in a job file.
        text: what is wrong, in words that follow the name.
        argument: what the command line calls it; "": `--` and the key.
    """

    key: str
    text: str
    argument: str = ""

    def __str__(self) -> str:
        """As the command line tells it."""
        return f"{self.argument or option_of(self.key)} {self.text}"


class SettingsError(UsageError):
    """Settings that make no sense; the message names them as options."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(map(str, self.mistakes)))


def setting(**known: Any) -> Mapping[str, Setting]:
    """The metadata of a field; see `Setting`."""
    return {_METADATA_KEY: Setting(**known)}


def settings_of(kind: Any) -> dict[str, Setting]:  # noqa: ANN401 - a dataclass or an instance
    """What is known of the fields of a configuration, each with its key."""
    found = {field.name: field.metadata.get(_METADATA_KEY, Setting()) for field in dataclasses.fields(kind)}
    return {name: one if one.key else dataclasses.replace(one, key=name) for name, one in found.items()}


def require_sense(config: Any) -> None:  # noqa: ANN401 - a dataclass of the configuration
    """Check every setting of a configuration.

    Raises:
        SettingsError: some make no sense; all of them are named.
    """
    faults = ((one, one.fault(getattr(config, name))) for name, one in settings_of(config).items())
    mistakes = [Mistake(one.key, fault, one.argument) for one, fault in faults if fault]
    if mistakes:
        raise SettingsError(mistakes)


def require_sense_in_new_job(*configs: Any, begun: BegunValue) -> None:
    """Check the settings that a job may only have if it was begun with them.

    Args:
        configs: dataclasses of the configuration.
        begun: what the job was begun with.

    Raises:
        SettingsError: some make no sense; all of them are named.
    """
    known = [(one, getattr(config, name)) for config in configs for name, one in settings_of(config).items()]
    faults = ((one, one.fault_in_new_job(value, begun)) for one, value in known)
    mistakes = [Mistake(one.key, fault, one.argument) for one, fault in faults if fault]
    if mistakes:
        raise SettingsError(mistakes)


def choice_fault(value: object, choices: Iterable[str]) -> str:
    """What is wrong with a word that must be one of several."""
    known = list(choices)
    return "" if value in known else f"must be one of {', '.join(known)}, not {value!r}{did_you_mean(value, known)}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of a message: the name that was meant, if one is near enough."""
    near = nearest(str(word), known)
    return f": did you mean {near!r}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """The name that was meant; "" where none is near enough."""
    return next(iter(difflib.get_close_matches(word[:80].lower(), list(known), n=1)), "")


def option_of(key: str) -> str:
    """A setting's name on the command line."""
    return f"--{key.replace('_', '-')}"


def shown_number(value: float) -> str:
    """A number of a message."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _instead_of(value: float) -> str:
    # A number of thousands of digits says nothing, and Python refuses to print it.
    is_too_long = isinstance(value, int) and abs(value) > MAX_NUMBER
    return "" if is_too_long else f", not {shown_number(value)}"
