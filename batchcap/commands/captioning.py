"""Owns `batchcap caption` and `batchcap run`: options or a job file become one configuration, and the job is run."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcap.commands.begun import BegunJob
from batchcap.commands.forms import Surroundings
from batchcap.commands.options import Given, is_given, options_of
from batchcap.commands.results import MAX_SHOWN, print_result
from batchcap.commands.signals import stop_on_signals
from batchcap.config import DEMO_MODEL, MODEL_VARIABLE, JobConfig
from batchcap.core.errors import UsageError
from batchcap.core.setting import require_sense_in_new_job

if TYPE_CHECKING:
    from batchcap.job.summary import Summary

log = logging.getLogger(__name__)

# The options that most people need; all others stand in panels.
_COMMON = (
    "context_of_call",
    "inputs",
    "output",
    "model",
    "prompt",
    "max_new_tokens",
    "max_visual_tokens",
    "keep_columns",
    "limit",
    "profile",
    "retry",
    "show",
)
Show = Annotated[int, typer.Option(min=0, max=MAX_SHOWN, help="Print the first N captions at the end.")]


@options_of(JobConfig, first=_COMMON)
def caption(context_of_call: typer.Context, given: Given, show: Show = 0) -> None:
    """Caption every image of the inputs.

    Run the same command again to resume; what is finished is never done twice.
    """
    output = os.path.expanduser(given["output"])  # noqa: PTH111 - as it is where there is no such user
    begun = BegunJob(output)
    explicit = given_settings(context_of_call)
    config = given.build(JobConfig, Surroundings(begun=begun), output=output, explicit=explicit)
    require_sense_in_new_job(config, begun=begun.value)
    if config.resume.retry:
        _require_begun(Path(config.output))
    _run(config, show)


def _require_begun(output: Path) -> None:
    """A retry by hand is of a job that is there. In a job file it stands from the first night on."""
    from batchcap.store.folder import JobFolder, alike

    try:
        JobFolder.open_existing(output)
    except UsageError:
        raise UsageError(
            f"--retry captions rows of an earlier run again, and {output} is not a job folder: check --output, or "
            f"leave --retry out to begin a job{alike(output)}"
        ) from None


def run(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Job file; see the jobs/ folder.")],
    show: Show = 0,
) -> None:
    """Caption as a job file says, from cron or systemd. Relative paths start from the file's folder."""
    from batchcap.commands.jobfile import load_job_file

    config = load_job_file(job_file)
    if config.model is None:
        config = dataclasses.replace(config, model=_model_of_the_surroundings(Path(config.output)))
    _run(config, show)


def _model_of_the_surroundings(output: Path) -> str | None:
    """The model of a job file that names none."""
    from batchcap.store.fingerprint import begun_model

    if named := os.environ.get(MODEL_VARIABLE):
        return named
    if begun_model(output) != DEMO_MODEL:
        return None
    log.warning(
        'the job file names no model: its job was begun with the demo model and goes on with it; write model = "%s" '
        "into the file",
        DEMO_MODEL,
    )
    return DEMO_MODEL


def given_settings(context: typer.Context) -> frozenset[str]:
    """Names of the settings that are on the command line, which no profile changes."""
    from batchcap.engines.profiles import NAMES

    return frozenset(name for name in NAMES if is_given(context, name))


def _run(config: JobConfig, show: int) -> None:
    from batchcap.export.demo import load_model
    from batchcap.job.progress import progress_for_terminal
    from batchcap.job.run import run_job
    from batchcap.report.status import first_captions

    summary: Summary = run_job(config, progress_for_terminal(), load_model=load_model, stopping=stop_on_signals())
    if show:
        print_result(first_captions(Path(config.output), show))
    print_result(summary.message)
    raise typer.Exit(int(summary.exit_code))
