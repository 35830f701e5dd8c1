"""Owns the list of the forms: a new one is a module with a `Form`, and its line here."""

from pathlib import Path

from batchcap.config import OutputsConfig
from batchcap.core.address import canonical, is_remote, path_of
from batchcap.outputs.form import Form, Job
from batchcap.outputs.html_alt import HtmlAlt
from batchcap.outputs.hub_parquet import HubParquet
from batchcap.outputs.imagefolder import ImageFolder
from batchcap.outputs.input_tables import InputTables
from batchcap.outputs.lists import ArrowFile, Csv, JsonLines
from batchcap.outputs.sidecars import JsonFiles, TextFiles
from batchcap.outputs.webdataset import WebDataset
from batchcap.outputs.xmp import XmpFiles

FORMS: dict[str, type[Form]] = {
    form.name: form
    for form in (
        TextFiles,
        JsonFiles,
        XmpFiles,
        JsonLines,
        Csv,
        ArrowFile,
        ImageFolder,
        HubParquet,
        WebDataset,
        InputTables,
        HtmlAlt,
    )
}


def make_form(wanted: str, job: Job, config: OutputsConfig) -> Form:
    """The form that `FORM` or `FORM:WHERE` names; `config.form_fault` tells whether it names one."""
    name, _colon, where = wanted.partition(":")
    return FORMS[name].variant(config)(job, _place(where), config)


def _place(where: str) -> Path | None:
    if not where:
        return None
    return path_of(canonical(where)) if is_remote(where) else Path(where).expanduser()
