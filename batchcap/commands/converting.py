"""Owns `batchcap convert`: finished captions in other forms."""

from pathlib import Path
from typing import Annotated

import typer

from batchcap.commands.options import Given, options_of
from batchcap.commands.results import print_result
from batchcap.config import FORMS, InputConfig, OutputsConfig, form_fault, sent_without_asking
from batchcap.core.errors import UsageError

_FORMS = "; ".join(f"{name}: {text}" for name, text in FORMS.items())


@options_of(
    OutputsConfig,
    InputConfig,
    only=(
        "existing",
        "verdicts",
        "full_names",
        "max_alt_letters",
        "html_pages",
        "folder_images",
        "license",
        "csv_safe",
        "allow_remote",
    ),
    first=("output", "to"),
)
def convert(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Job folder.")],
    given: Given,
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="FORM[:WHERE]",
            help="The form, and the file, folder or address (s3://, gs://, hf://) it is written to; may be given "
            f"several times. {_FORMS}.",
        ),
    ],
) -> None:
    """Write the captions of a job in other forms. Works while it runs, too, for what is finished.

    Run it again to bring them up to date: files that batchcap wrote are replaced, those of others only if --existing
    says so.
    """
    from batchcap.outputs.convert import convert as convert_job
    from batchcap.remote.attempts import NetworkError

    for one in to:
        if fault := form_fault(one):
            raise UsageError(f"--to {fault}")
    config = given.build(OutputsConfig)
    allow_remote = given["allow_remote"]
    if not allow_remote and (fault := sent_without_asking(to)):
        raise UsageError(f"--to {fault}")
    all_written = convert_job(output, to, config, allow_remote=allow_remote)
    for written in all_written:
        print_result(written.to_text())
    if count := sum(written.unreachable for written in all_written):
        raise NetworkError(f"{count} captions are not written, since the servers of their images do not answer")
