"""Owns printing a result to stdout."""

import typer

from batchcap.core.text import harmless

MAX_SHOWN = 1_000_000


def print_result(text: str) -> None:
    """Print a result, which may hold names and captions."""
    typer.echo(harmless(text))
