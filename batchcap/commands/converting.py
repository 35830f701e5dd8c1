"""Owns `batchcap convert`: finished captions in other forms."""

from pathlib import Path
from typing import Annotated

import typer

from batchcap.commands.options import Given, options_of
from batchcap.commands.results import print_result
from batchcap.config import FORMS, OutputsConfig, form_fault
from batchcap.core.errors import UsageError

_FORMS = "; ".join(f"{name}: {text}" for name, text in FORMS.items())


@options_of(
    OutputsConfig,
    only=(
        "existing",
        "verdicts",
        "full_names",
        "max_alt_letters",
        "html_pages",
        "folder_images",
        "license",
        "csv_safe",
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
            help=f"The form, and the file or folder it is written to; may be given several times. {_FORMS}.",
        ),
    ],
) -> None:
    """Write the captions of a job in other forms. Works while it runs, too, for what is finished.

    Run it again to bring them up to date: files that batchcap wrote are replaced, those of others only if --existing
    says so.
    """
    from batchcap.outputs.convert import convert as convert_job

    for one in to:
        if fault := form_fault(one):
            raise UsageError(f"--to {fault}")
    config = given.build(OutputsConfig)
    for written in convert_job(output, to, config):
        print_result(written.to_text())
