"""Owns printing a result to stdout."""

import typer

from batchcap.terminal import harmless


def print_result(text: str) -> None:
    """Print a result, which may hold names and captions."""
    typer.echo(harmless(text))
