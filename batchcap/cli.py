"""Owns the edge of the program: the commands' names, streams, signals, and how an error becomes an exit code."""

import copy
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from batchcap import __version__
from batchcap.commands.bundles import export, verify
from batchcap.commands.captioning import caption, run
from batchcap.commands.converting import convert
from batchcap.commands.inspection import doctor, report, status, tune
from batchcap.commands.merging import merge
from batchcap.commands.one_style import OneStyleCommand
from batchcap.commands.signals import StoppedError, ignore_signals, stop_by_signal
from batchcap.commands.streams import open_standard_streams
from batchcap.core.errors import BatchcapError, ExitCode, UsageError
from batchcap.core.left_out import leave_pandas_out
from batchcap.core.text import harmless

_UsageError: Any = typer.BadParameter.__base__  # click's, or typer's own of another name
_LOG_LEVELS = {"verbose": logging.DEBUG, "quiet": logging.WARNING}


class _Group(TyperGroup):
    """The commands. Options of the log may stand after the command too; an option before its command is told of."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for option in [one for one in self.params if one.name in _LOG_LEVELS]:
            for command in self.commands.values():
                also: Any = copy.copy(option)
                also.hidden, also.expose_value, also.callback = True, False, _set_log_level
                command.params.append(also)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's or typer's own, by version
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            option = getattr(error, "option_name", None)
            owners = [name for name, one in self.commands.items() if any(option in each.opts for each in one.params)]
            if named := [word for word in args if word in owners]:
                raise _UsageError(f"{option} goes after its command: batchcap {named[0]} … {option}", ctx) from None
            raise


def _set_log_level(_context: Any, option: Any, value: bool) -> bool:  # noqa: ANN401 - as typer calls it
    if value:
        logging.getLogger("batchcap").setLevel(_LOG_LEVELS[option.name])
    return value


app = typer.Typer(
    cls=_Group,
    name="batchcap",
    help="Caption images in bulk on ordinary CPUs with Qwen3-VL: no network, nothing lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (caption, run, merge, convert, export, verify, status, report, doctor, tune):
    app.command(cls=OneStyleCommand)(_command)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"batchcap {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="More log lines on stderr; also after the command.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr; also after the command.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    try:
        Path.cwd()  # relative paths, and much of what the libraries do, need it
    except OSError as error:
        raise UsageError(
            f"the working folder is not there ({error.strerror}): it was deleted or moved while this shell was in it. "
            "Change to a folder that exists (cd) and run the command again"
        ) from None
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("batchcap").setLevel(level)


class _Formatter(logging.Formatter):
    """Log lines that do no harm to a terminal, whatever the names in them."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def main() -> None:
    """The `batchcap` command: every error becomes one line on stderr and the documented exit code.

    Set BATCHCAP_DEBUG=1 to see the traceback of an unexpected error.
    """
    open_standard_streams()
    stop_by_signal()
    leave_pandas_out()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # what can't be written is told, and not by the interpreter at its end
    except (BatchcapError, StoppedError) as error:
        typer.echo(harmless(f"batchcap: error: {error}"), err=True)
        sys.exit(int(error.exit_code))
    except Exception as error:  # noqa: BLE001 - the command line's edge
        if os.environ.get("BATCHCAP_DEBUG"):
            traceback.print_exc()
        message = harmless(f"batchcap: error: unexpected {type(error).__name__}: {error}")
        typer.echo(
            f"{message}\nThis is a bug in batchcap. Nothing finished is lost; BATCHCAP_DEBUG=1 shows the traceback.",
            err=True,
        )
        sys.exit(int(ExitCode.UNEXPECTED))
    finally:
        ignore_signals()


if __name__ == "__main__":
    main()
