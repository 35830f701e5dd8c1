"""Owns the dataset card: a README.md with what the Hugging Face hub reads, and how the captions were made."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from batchcap.config import OutputsConfig
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import one_line
from batchcap.outputs.form import FinishedPart, Job, Written
from batchcap.outputs.owned import is_foreign, owned_file
from batchcap.store.parts import RETRIES_KEY, SETTINGS_KEY, part_metadata

CARD = "README.md"
_TEMPLATE = "card.md.jinja"
_SIZES = ((10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M"), (10**9, "1B"))
# Told apart, or of no meaning elsewhere: a folder of this machine.
_NOT_LISTED = frozenset({"model", "prompt", "image-root"})
_NONE: tuple[object, ...] = (None, [])


class Card:
    """The card of a dataset. One that somebody else has written, or changed, is left as it is.

    Args:
        job: the job.
        config: how it is written.
        parts: the parts that the dataset is made of.
        total: what was written.
    """

    def __init__(self, job: Job, config: OutputsConfig, parts: Sequence[FinishedPart], total: Written) -> None:
        self._job = job
        self._config = config
        self._parts = parts
        self._total = total

    def write(self, folder: Path, rows: int, data_files: Sequence[str], columns: Sequence[str]) -> None:
        """Write the card into a folder.

        Args:
            folder: of the dataset.
            rows: of the dataset.
            data_files: patterns of the files that `datasets` is to read.
            columns: of the dataset.

        Raises:
            StorageError: it can't be written, or a part can't be read.
        """
        path = folder / CARD
        if is_foreign(self._job.ledger, path):
            self._total.kept += 1
            return
        text = self._text(folder.name, rows, data_files, columns).encode(errors="replace")
        if not os.path.lexists(path) or path.read_bytes() != text:
            with owned_file(self._job.ledger, path) as temporary:
                temporary.write_bytes(text)
        self._total.files += 1

    def _text(self, title: str, rows: int, data_files: Sequence[str], columns: Sequence[str]) -> str:
        counts = RowCounts()
        for part in self._parts:
            counts.add(part.counts)
        stored = [part_metadata(part.path) for part in self._parts]
        settings = json.loads(stored[0].get(SETTINGS_KEY, "{}")) if stored else {}
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("batchcap.outputs", "."),
            autoescape=False,  # noqa: S701 - Markdown, not HTML: what others have written is fenced or escaped
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {"json": json.dumps, "cell": _cell, "fence": _fence}
        return environment.get_template(_TEMPLATE).render(
            title=one_line(title),
            license=self._config.license,
            size=size_category(rows),
            data_files=list(data_files),
            columns=list(columns),
            rows=rows,
            total=self._total,
            counts=counts,
            verdicts=self._config.verdicts,
            model=json.loads(stored[0].get("batchcap.bundle", "{}")) if stored else {},
            versions=sorted({one["batchcap.version"] for one in stored if "batchcap.version" in one}),
            prompts=_prompts(settings.get("prompt", "")),
            settings={
                name: value for name, value in settings.items() if name not in _NOT_LISTED and value not in _NONE
            },
            has_retries=any(RETRIES_KEY in one for one in stored),
        )


def size_category(rows: int) -> str:
    """What the hub calls datasets of so many rows."""
    below = "n"
    for limit, name in _SIZES:
        if rows < limit:
            return f"{below}<{name}"
        below = f"{name}<n"
    return f"n>{_SIZES[-1][1]}"


def _prompts(stored: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - of a part
    return [("", stored)] if isinstance(stored, str) else [(name, text) for name, text in stored]


def _cell(value: object) -> str:
    """A value in a table of Markdown."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _fence(text: str) -> str:
    """A text as a block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
