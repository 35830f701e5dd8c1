"""Owns `docs/job.schema.json`: what editors need to check and complete job files. Run it with `make docs`."""

import json
from pathlib import Path

from batchcap.commands.jobmodel import json_schema

PAGE = Path(__file__).with_name("job.schema.json")


def page() -> str:
    """The JSON Schema, with the settings' help texts as descriptions."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
