"""Owns how settings become the options of a command, and what was typed becomes the configuration again."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from batchcap.commands.forms import WRITINGS, Surroundings
from batchcap.core.setting import NEEDED, Setting, SettingField, all_settings, fields_of

C = TypeVar("C")
Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Given:
    """What a command line gives for settings; a parameter of this type stands for the options of all of them.

    Attributes:
        values: as typer has parsed them, by the settings' keys.
    """

    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - any setting's
        return self.values[key]

    def build(self, kind: type[C], around: Surroundings | None = None, **known: Any) -> C:
        """The configuration that was given, its tables too.

        Args:
            kind: its dataclass. Settings that are no options of the command keep their defaults.
            around: what the meaning of a value depends on; None: nothing is begun, paths start from here.
            known: values of fields that the command line does not give as they are.

        Raises:
            SettingsError: a value makes no sense.
        """
        around = around or Surroundings()
        for field in fields_of(kind):
            if field.name in known:
                continue
            if field.is_table:
                known[field.name] = self.build(field.hint, around)
            elif field.setting.key in self.values:
                writing = WRITINGS[field.setting.form]
                known[field.name] = writing.read(self.values[field.setting.key], around)
        return kind(**known)


@dataclass(frozen=True, slots=True)
class OptionsOf:
    """Gives a command the options of a configuration, in the place of its parameter of type `Given`.

    Attributes:
        kinds: dataclasses of the configuration.
        only: keys of the settings that the command has; none: all of them.
        first: names of parameters that stand before all others and in no panel, settings among them.
        last: names of parameters that stand behind the command's own.
        help: other help texts than the settings', by key.
    """

    kinds: tuple[type[Any], ...]
    only: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    help: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, command: Command) -> Command:
        """The command with these options."""
        own = inspect.signature(command, eval_str=True).parameters
        (place,) = [name for name, one in own.items() if one.annotation is Given]
        options = self._parameters()
        parameters = self._sorted(
            option for name, one in own.items() for option in (options.values() if name == place else [_by_name(one)])
        )

        def call(**values: Any) -> None:
            given = Given({name: values.pop(name) for name in options})
            command(**values, **{place: given})

        described: Any = call
        described.__name__, described.__qualname__ = command.__name__, command.__qualname__
        described.__module__, described.__doc__ = command.__module__, command.__doc__
        described.__signature__ = inspect.Signature(parameters)
        described.__annotations__ = {one.name: one.annotation for one in parameters}
        return call

    def _parameters(self) -> dict[str, inspect.Parameter]:
        """A parameter for each setting, by key: those of no panel first, each panel's in its order."""
        found = [self._adapted(one) for kind in self.kinds for one in all_settings(kind)]
        found = [one for one in found if not self.only or one.setting.key in self.only]
        tables = [one.setting.panel for kind in self.kinds for one in fields_of(kind) if one.is_table]
        panels = list(dict.fromkeys(["", *tables, *(one.setting.panel for one in found)]))
        found.sort(key=lambda one: (panels.index(one.setting.panel), one.setting.order))
        return {one.setting.key: parameter_of(one) for one in found}

    def _adapted(self, field: SettingField) -> SettingField:
        """The setting as this command shows it."""
        known = field.setting
        panel = "" if known.key in (*self.only, *self.first) else known.panel
        adapted = dataclasses.replace(known, help=self.help.get(known.key, known.help), panel=panel)
        return dataclasses.replace(field, setting=adapted)

    def _sorted(self, parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
        def place(one: inspect.Parameter) -> int:
            if one.name in self.first:
                return self.first.index(one.name) - len(self.first)
            return 1 + self.last.index(one.name) if one.name in self.last else 0

        return sorted(parameters, key=place)


def options_of(*kinds: type[Any], **choices: Any) -> OptionsOf:
    """Give a command the options of configurations; see `OptionsOf`."""
    return OptionsOf(kinds, **choices)


def parameter_of(field: SettingField) -> inspect.Parameter:
    """The parameter that typer makes an option, or an argument, of."""
    known, writing = field.setting, WRITINGS[field.setting.form]
    return inspect.Parameter(
        known.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.default is NEEDED else writing.shown(field.default),
        annotation=Annotated[writing.typed or field.hint, _typer_info(known)],
    )


def _typer_info(known: Setting) -> Any:  # noqa: ANN401 - typer's own, of two kinds
    if known.argument:
        return typer.Argument(metavar=f"{known.argument}...", help=known.help)
    return typer.Option(
        *known.flags,
        help=known.help,
        envvar=known.variable or None,
        metavar=known.metavar or None,
        rich_help_panel=known.panel or None,
    )


def _by_name(parameter: inspect.Parameter) -> inspect.Parameter:
    """The same, given by its name, so that the order of those with a default is free."""
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether somebody gave a parameter: on the command line, or in its environment variable."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
