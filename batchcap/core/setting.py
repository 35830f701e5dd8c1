"""Owns what a setting is besides its type: names, help, range, and the error that names what is wrong with it.

The options of the command line, the keys of job files, the fingerprint of a job and the pages are made from it.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar

from batchcap.core.errors import UsageError

MAX_NUMBER = 2**63 - 1  # journal and plan count in 64 bits
_METADATA_KEY = "setting"

T = TypeVar("T")

# The value that a job was begun with, by the setting's key; None where there is no such job.
BegunValue = Callable[[str], object]


class Form(StrEnum):
    """How the command line writes a value; `commands.forms` reads it."""

    VALUE = "value"
    REPEATED = "repeated"  # several texts, each an argument or an option of its own
    COMMAS = "commas"  # several texts in one, with commas between
    PROMPTS = "prompts"  # TEXT, or several of NAME=TEXT


class Unset(StrEnum):
    """What stands in the place of a value that there is not."""

    NEEDED = "needed"


# Every job folder has the setting: one without it is damaged.
NEEDED: Final = Unset.NEEDED


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a field of the configuration.

    Attributes:
        key: its name in a job file, and with dashes on the command line; "": the field's own.
        old_keys: names that job files may still have for it.
        help: what `--help` says.
        file_help: what editors show in a job file; "": `help`.
        panel: part of the help text; "": that of its table. Of a table: the part for its settings.
        order: the settings of a panel stand in this order; equal ones as the fields do.
        flags: its names on the command line; none: `--` and the key, and `--no-` for what is true or false.
        argument: what the command line calls it where it is no option.
        metavar: what stands for the value in the help text; "": the type.
        variable: environment variable that is read where the option is not given.
        form: how the command line writes it.
        at_least: smallest value.
        above: every value is larger.
        at_most: largest value.
        at_most_in_new_job: largest value of a new job. A job that was begun with a larger one keeps it, since any other
            value would change its captions.
        zero: what 0 means.
        check: what else is wrong with a value, in words that follow its name; "" where nothing is.
        decides_caption: it decides the words or the columns of the output, so a job folder is bound to its value.
        free_in_retry: rows that are captioned again may have another value than the job.
        value_before: what jobs did before the setting existed, where it decides captions; `NEEDED`: every job has it.
        is_given: whether somebody gives it; else the program fills it in, and it is no setting.
    """

    key: str = ""
    old_keys: tuple[str, ...] = ()
    help: str = ""
    file_help: str = ""
    panel: str = ""
    order: int = 0
    flags: tuple[str, ...] = ()
    argument: str = ""
    metavar: str = ""
    variable: str = ""
    form: Form = Form.VALUE
    at_least: float | None = None
    above: float | None = None
    at_most: float = math.inf
    at_most_in_new_job: float = math.inf
    zero: str = ""
    check: Callable[[Any], str] | None = None
    decides_caption: bool = False
    free_in_retry: bool = False
    value_before: object = NEEDED
    is_given: bool = True

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
        most = self.at_most if math.isinf(self.at_most_in_new_job) else MAX_NUMBER
        return "" if value <= most else self._too_large(value)

    def fault_in_new_job(self, value: object, begun: BegunValue) -> str:
        """What is wrong with a value unless the job was begun with it; "" where nothing is."""
        if not (isinstance(value, int | float) and value > self.at_most_in_new_job):
            return ""
        return "" if begun(self.key) == value else self._too_large(value)

    @property
    def largest(self) -> float:
        """Largest value of a new job."""
        return min(self.at_most, self.at_most_in_new_job)

    def _too_large(self, value: float) -> str:
        return f"must be at most {shown_number(self.largest)}{_instead_of(value)}"


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


def setting(default: T, help: str, **known: Any) -> T:  # noqa: A002 - as the attribute
    """A field of the configuration that is a setting, with its default; see `Setting`."""
    field: T = dataclasses.field(default=default, metadata=known_as(help=help, **known))
    return field


def known_as(**known: Any) -> Mapping[str, Setting]:
    """The metadata of a field without a default, or of a table; see `Setting`."""
    return {_METADATA_KEY: Setting(**known)}


def settings_of(kind: Any) -> dict[str, Setting]:  # noqa: ANN401 - a dataclass or an instance
    """What is known of the settings of a configuration, by field; each has its key."""
    return {one.name: one.setting for one in fields_of(kind)}


@dataclass(frozen=True, slots=True)
class SettingField:
    """A field of the configuration that is a setting, or a table of settings.

    Attributes:
        name: of the field.
        setting: what is known of it.
        hint: its type.
        default: its value where nobody gives one; `NEEDED`: somebody must.
    """

    name: str
    setting: Setting
    hint: Any
    default: Any

    @property
    def is_table(self) -> bool:
        """Whether it holds settings itself."""
        return dataclasses.is_dataclass(self.hint)


def fields_of(kind: Any) -> tuple[SettingField, ...]:  # noqa: ANN401 - a dataclass or an instance
    """The settings and tables of a configuration, as its fields stand."""
    return _fields_of(kind if isinstance(kind, type) else type(kind))


@cache
def _fields_of(kind: Any) -> tuple[SettingField, ...]:  # noqa: ANN401 - a dataclass
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        known: Setting = field.metadata.get(_METADATA_KEY, Setting())
        if known.is_given:
            known = known if known.key else dataclasses.replace(known, key=field.name)
            found.append(SettingField(field.name, known, hints[field.name], _default(field)))
    return tuple(found)


def _default(field: "dataclasses.Field[Any]") -> Any:  # noqa: ANN401 - any setting's
    if field.default is not dataclasses.MISSING:
        return field.default
    return NEEDED if field.default_factory is dataclasses.MISSING else field.default_factory()


def all_settings(kind: Any) -> Iterator[SettingField]:  # noqa: ANN401 - a dataclass or an instance
    """Every setting of a configuration, those of its tables too; one without a panel has its table's."""
    for field in fields_of(kind):
        if not field.is_table:
            yield field
            continue
        for inner in all_settings(field.hint):
            panel = inner.setting.panel or field.setting.panel
            yield dataclasses.replace(inner, setting=dataclasses.replace(inner.setting, panel=panel))


def all_values(config: Any) -> Iterator[tuple[Setting, Any]]:  # noqa: ANN401 - a dataclass of the configuration
    """Every setting of a configuration, those of its tables too, and its value."""
    for field in fields_of(config):
        value = getattr(config, field.name)
        if field.is_table:
            yield from all_values(value)
        else:
            yield field.setting, value


def require_sense(config: Any) -> None:  # noqa: ANN401 - a dataclass of the configuration
    """Check every setting of a configuration.

    Raises:
        SettingsError: some make no sense; all of them are named.
    """
    faults = ((one, one.fault(getattr(config, name))) for name, one in settings_of(config).items())
    mistakes = [Mistake(one.key, fault, one.argument) for one, fault in faults if fault]
    if mistakes:
        raise SettingsError(mistakes)


def require_sense_in_new_job(config: Any, *, begun: BegunValue) -> None:  # noqa: ANN401 - a dataclass
    """Check the settings that a job may only have if it was begun with them.

    Args:
        config: a configuration; its tables are checked, too.
        begun: what the job was begun with.

    Raises:
        SettingsError: some make no sense; all of them are named.
    """
    faults = ((one, one.fault_in_new_job(value, begun)) for one, value in all_values(config))
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
