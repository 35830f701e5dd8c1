"""Owns `batchcap status` and `batchcap doctor`: how far a job is, and what this machine would do."""

from pathlib import Path
from typing import Annotated

import typer

from batchcap.commands.results import print_result


def status(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Job folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    captions: Annotated[int, typer.Option(help="Print the first N captions too.")] = 0,
) -> None:
    """Show how far a job is: done, left, rate, failures by kind. Works while it runs, too."""
    from batchcap.report.status import first_captions, read_status

    state = read_status(output)
    print_result(state.to_json() if json else state.to_text())
    if captions and not json:
        print_result(first_captions(output, captions))


def doctor(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Bundle to look at; default: the demo model.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, CPU features and memory, and what a job would use on this machine and why."""
    from batchcap.report.doctor import examine

    findings = examine(model)
    print_result(findings.to_json() if json else findings.to_text())
    raise typer.Exit(int(findings.exit_code))
