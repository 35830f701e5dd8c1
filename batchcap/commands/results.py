"""Owns printing a result to stdout."""

import os
import sys

import typer

from batchcap.terminal import harmless


def print_result(text: str) -> None:
    """Print a result, which may hold names and captions.

    A reader that has seen enough (`| head`) is no error, and changes no exit code.
    """
    try:
        typer.echo(harmless(text))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
