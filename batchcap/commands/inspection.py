"""Owns `batchcap status`, `report`, `doctor` and `tune`: how a job stands and looks, what this machine would do."""

from pathlib import Path
from typing import Annotated

import typer

from batchcap.commands.captioning import given_settings
from batchcap.commands.options import Given, options_of
from batchcap.commands.results import MAX_SHOWN, print_result
from batchcap.config import DEMO_MODEL, JobConfig, PlacementConfig


def status(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Job folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    captions: Annotated[int, typer.Option(min=0, max=MAX_SHOWN, help="Print the first N captions too.")] = 0,
) -> None:
    """Show how far a job is: done, left, rate, failures by kind. Works while it runs, too."""
    from batchcap.report.status import first_captions, read_status

    state = read_status(output)
    print_result(state.to_json() if json else state.to_text())
    if captions and not json:
        print_result(first_captions(output, captions))


def report(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Job folder.")],
    to: Annotated[
        Path | None, typer.Option(help="Where to write the page; default: __batchcap/report.html in the job folder.")
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            "--images",
            "--pictures",
            min=0,
            max=MAX_SHOWN,
            help="Images on the page; half of them such as failed or look odd, as far as there are such.",
        ),
    ] = 200,
) -> None:
    """Write a page with images and their captions: one file, no scripts, nothing loaded. Works while a job runs."""
    from batchcap.report.page import write_page

    print_result(str(write_page(output, to, images)))


@options_of(
    JobConfig,
    only=("model", "profile", "decoders", "decoder_threads", "vision_threads"),
    help={
        "model": f"Bundle to look at, or {DEMO_MODEL}; without one no job is planned.",
        "profile": "Profile of the job to be planned.",
    },
)
def doctor(
    context_of_call: typer.Context,
    given: Given,
    check: Annotated[
        bool,
        typer.Option(
            help="Load the model and check on this CPU that a caption is the same in batches of any size, with one "
            "decoder and several."
        ),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, CPU features and memory, and what a job would use on this machine and why.

    Starts no job. The check of captions takes seconds, half a minute with a large model; --no-check leaves it out.
    """
    from batchcap.report.doctor import examine

    placement, asked_for = given.build(PlacementConfig), given_settings(context_of_call)
    findings = examine(given["model"], given["profile"], placement, asked_for, check=check)
    print_result(findings.to_json() if json else findings.to_text())
    raise typer.Exit(int(findings.exit_code))


@options_of(JobConfig, only=("model",), help={"model": f"Bundle to measure, or {DEMO_MODEL}."})
def tune(
    given: Given,
    minutes: Annotated[float, typer.Option(help="Time to take, about; more tries more.")] = 1.0,
    allow_rounded_vision: Annotated[
        bool,
        typer.Option(
            "--allow-rounded-vision",
            help="Try vision encoders, too, that round more than the default one (int8). Captions of new jobs may then "
            "differ a little.",
        ),
    ] = False,
) -> None:
    """Measure which settings caption fastest on this machine, and keep them for later jobs with this bundle.

    Captions generated images with several numbers of decoders, threads and slots and with the vision backends. Best
    done when nothing else runs. `batchcap doctor` shows what was found; `--profile auto` uses it.
    """
    from batchcap.engines.tuning.tune import require_minutes
    from batchcap.engines.tuning.tune import tune as find_fastest
    from batchcap.export.demo import load_model

    require_minutes(minutes)
    found = find_fastest(load_model(given["model"]), minutes, rounded_vision=allow_rounded_vision)
    print_result(found.to_text())
