"""Owns `docs/job.schema.json`: what editors need to check and complete job files. Run it with `make docs`."""

import json
from pathlib import Path

import typer

from batchcap.cli import app
from batchcap.commands.jobmodel import json_schema

PAGE = Path(__file__).with_name("job.schema.json")
# What the command line writes in another way than a job file.
_IN_A_FILE = {
    "prompt": "What to ask about each image; @FILE reads it from a file, @@ begins a text with @. A table NAME = TEXT "
    "asks several, with columns of their own: caption_NAME and so on.",
    "keep_columns": 'Input columns to carry into the output; ["*"]: all but the image.',
    "retry": "Rows of earlier runs to caption again: failed; truncated, repeated, degenerate, empty (verdicts), "
    "which need another setting of [generation] than the job has.",
}


def page() -> str:
    """The JSON Schema, with the options' help texts as descriptions."""
    command = typer.main.get_command(app).commands["caption"]
    descriptions = {option.name: option.help for option in command.params if getattr(option, "help", None)}
    return json.dumps(json_schema(descriptions | _IN_A_FILE), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
