"""Owns the edge of the program: the commands' names, streams, signals, and how an error becomes an exit code."""

import io
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from batchcap import __version__
from batchcap.commands.bundles import export, verify
from batchcap.commands.captioning import caption, run
from batchcap.commands.inspection import doctor, report, status, tune
from batchcap.commands.one_style import OneStyleCommand
from batchcap.errors import BatchcapError, ExitCode, UsageError
from batchcap.terminal import harmless

app = typer.Typer(
    name="batchcap",
    help="Caption pictures in bulk on ordinary CPUs with Qwen3-VL: no network, nothing lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (caption, run, export, verify, status, report, doctor, tune):
    app.command(cls=OneStyleCommand)(_command)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"batchcap {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More log lines on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")] = False,
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


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM outside a job: while inputs are listed, a bundle is checked or made.

    No Exception, so that what catches every fault of a library lets it pass; and not KeyboardInterrupt, which the
    command-line library would turn into exit code 1.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _stop(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGTERM:
        raise _Stopped("stopped", ExitCode.STOPPED_EARLY)
    raise _Stopped("interrupted", ExitCode.INTERRUPTED)


def _open_standard_streams() -> None:
    """Streams that the caller has closed (`2>&-`) lead nowhere; else files of ours would get their numbers."""
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(descriptor, True)
            stream = os.fdopen(descriptor, mode, encoding="utf-8")
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a caption may hold what this terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """The `batchcap` command: every error becomes one line on stderr and the documented exit code.

    Set BATCHCAP_DEBUG=1 to see the traceback of an unexpected error.
    """
    _open_standard_streams()
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except (BatchcapError, _Stopped) as error:
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
        # What is left is the interpreter's own end, with the signals' defaults: they would change the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
