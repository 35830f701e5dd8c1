"""Owns what is told of a job file that has mistakes: where each is, in TOML's words, and what was meant."""

import dataclasses
import datetime as dt
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from batchcap.config import JobConfig
from batchcap.core.setting import SettingField, choice_fault, fields_of, nearest

# Characters of a file's own words that a message shows.
_SHOWN_LENGTH = 60
# What TOML calls its values; a date and time is a date too, so it stands first.
_KINDS: Mapping[type[Any], str] = {
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a table",
    dt.datetime: "a date and time",
    dt.date: "a date",
    dt.time: "a time",
}
_TOP = ""


def _fields(kind: Any) -> dict[str, SettingField]:  # noqa: ANN401 - a dataclass
    return {one.setting.key: one for one in fields_of(kind)}


# The keys of each table; those outside of the tables under _TOP.
_KEYS = {_TOP: _fields(JobConfig)}
_KEYS |= {key: _fields(one.hint) for key, one in _KEYS[_TOP].items() if one.is_table}


@dataclass(slots=True)
class JobText:
    """A job file's content under the names of today, and what the file itself calls them.

    Attributes:
        data: the content.
        called: the file's own name of a key, by table and key.
        doubles: settings that are given twice, for a person.
    """

    data: dict[str, Any]
    called: dict[tuple[str, str], str] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: dict[str, Any]) -> "JobText":
        """A parsed file, whose old names are still read."""
        text = cls({})
        text.data = text._renamed(content, _TOP)
        for table in _KEYS:
            if isinstance(text.data.get(table), dict):
                text.data[table] = text._renamed(text.data[table], table)
        return text

    def _renamed(self, content: dict[str, Any], table: str) -> dict[str, Any]:
        found = dict(content)
        for key, known in _KEYS[table].items():
            names = [name for name in (key, *known.setting.old_keys) if name in found]
            if len(names) > 1:
                given = " and ".join(map(repr, names))
                self.doubles.append(f"{_in(table)}{given} are the same setting: give {key!r} alone")
            for name in names[1:]:
                del found[name]
            if names and names[0] != key:
                found[key] = found.pop(names[0])
                self.called[table, key] = names[0]
        return found

    def place(self, table: str, key: str) -> str:
        """Where a key is, as the file names it."""
        name = self.called.get((table, key), key)
        if table == _TOP:
            return f"[{name}]" if key in _KEYS else name
        return f"[{self.called.get((_TOP, table), table)}] {name}"

    def value(self, table: str, key: str) -> object:
        """What is given there."""
        return self.data[key] if table == _TOP else self.data[table][key]


def mistakes_of(errors: Iterable[Mapping[str, Any]], text: JobText, our_fault: str) -> list[str]:
    """What to tell about the errors that pydantic found.

    Args:
        errors: they; several may be about one key.
        text: the job file.
        our_fault: type of the errors whose message is ours.
    """
    found: dict[tuple[str, str], str] = {}
    missing: list[tuple[str, str]] = []
    meant: set[str] = set()
    for error in errors:
        place = error["loc"]
        is_inside = len(place) > 1 and place[0] in _KEYS
        table, key = (place[0], place[1]) if is_inside else (_TOP, place[0])
        if error["type"] == "missing":
            missing.append((table, key))
        elif error["type"] == "extra_forbidden":
            found[table, key], guess = _unknown(table, key, text)
            meant.add(guess)
        else:
            said = error["msg"] if error["type"] == our_fault else _type_fault(table, key, text.value(table, key))
            found.setdefault((table, key), f"{text.place(table, key)}: {said}")
    # What is missing only since it is misspelt is told once.
    return [_missing(*place) for place in missing if place[1] not in meant] + list(found.values())


def _unknown(table: str, key: str, text: JobText) -> tuple[str, str]:
    """What is told of an unknown key, and the known one that was meant."""
    shown, where = repr(key[:_SHOWN_LENGTH]), f" in {text.place(_TOP, table)}" if table else ""
    if table == _TOP and isinstance(text.data[key], dict):
        tables = [name for name in _KEYS if name]
        meant = nearest(key, tables)
        known = f"did you mean [{meant}]?" if meant else f"known are {', '.join(f'[{name}]' for name in tables)}"
        return f"unknown table [{key[:_SHOWN_LENGTH]}]: {known}", meant
    elsewhere = next((other for other, keys in _KEYS.items() if key in _names(keys.values())), None)
    if elsewhere is not None:
        belongs = f"in [{elsewhere}]" if elsewhere else "above the first table"
        return f"unknown key {shown}{where}: it belongs {belongs}", key
    here = list(_KEYS[table])
    meant = nearest(key, here)
    known = f"did you mean {meant!r}?" if meant else f"known here are {', '.join(here)}"
    return f"unknown key {shown}{where}: {known}", meant


def _names(fields: Iterable[SettingField]) -> set[str]:
    return {name for one in fields for name in (one.setting.key, *one.setting.old_keys)}


def _missing(table: str, key: str) -> str:
    if key in _KEYS:
        return f"the table [{key}] with `inputs` is missing; see jobs/ for examples"
    return f"{_in(table)}`{key}` is missing; see jobs/ for examples"


def _in(table: str) -> str:
    return f"[{table}] " if table else ""


def _type_fault(table: str, key: str, value: object) -> str:
    """What is wrong with a value of another type than its key wants."""
    hint = _KEYS[table][key].hint
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [str(one.value) for one in hint]
        if isinstance(value, str):
            return choice_fault(value[:_SHOWN_LENGTH], choices)
        return f"must be one of {', '.join(choices)}, not {_kind(value)}"
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "a text")
    inside: list[object] = []
    if typing.get_origin(hint) is tuple:
        wanted, inside = "a list of texts", value if isinstance(value, list) else []
    elif dataclasses.is_dataclass(hint):
        wanted = "a table"
    elif typing.get_origin(hint) is not None:  # a prompt, or several
        wanted, inside = "a text, or a table of texts", list(value.values()) if isinstance(value, dict) else []
    wrong = [f" with {_kind(one)} in it" for one in inside if not isinstance(one, str)]
    return f"must be {wanted}, not {_kind(value)}{''.join(wrong[:1])}"


def _kind(value: object) -> str:
    """What TOML calls a value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value}" if isinstance(value, float) or abs(value) < 10**18 else "so large a number"
    return next((word for kind, word in _KINDS.items() if isinstance(value, kind)), "that")
