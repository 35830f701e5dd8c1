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
    decoders: Annotated[int, typer.Option(help="Decoder processes of the job to be planned.")] = 1,
    decoder_threads: Annotated[int, typer.Option(help="Threads of one decoder of that job; 0: cores / decoders.")] = 0,
    vision_threads: Annotated[int, typer.Option(help="Threads of its vision encoder; 0: all cores.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, CPU features and memory, and what a job would use on this machine and why. Starts nothing."""
    from batchcap.config import PlacementConfig
    from batchcap.report.doctor import examine

    placement = PlacementConfig(decoders=decoders, decoder_threads=decoder_threads, vision_threads=vision_threads)
    findings = examine(model, placement)
    print_result(findings.to_json() if json else findings.to_text())
    raise typer.Exit(int(findings.exit_code))
