"""Owns the question what a job was begun with, as long as its folder is not held: asked before options are refused."""

from functools import cached_property
from pathlib import Path
from typing import Any


class BegunJob:
    """The job in a folder, if there is one; the folder is read when something is asked first."""

    def __init__(self, output: str | None) -> None:
        """Nothing is read yet.

        Args:
            output: job folder; None: it is not known.
        """
        self._output = output

    def value(self, key: str) -> object:
        """The value of a setting that decides captions; None where no job was begun.

        Args:
            key: the setting's name in a job file.
        """
        return self._stored.get(key.replace("_", "-"))

    @property
    def prompt(self) -> str | dict[str, str] | None:
        """What is asked about each image, as a configuration has it."""
        stored: Any = self._stored.get("prompt")
        try:
            return stored if stored is None or isinstance(stored, str) else dict(stored)
        except (TypeError, ValueError):  # a damaged folder, which the job itself will refuse
            return None

    @cached_property
    def _stored(self) -> dict[str, Any]:
        if self._output is None:
            return {}
        from batchcap.store.fingerprint import stored_fingerprint

        return stored_fingerprint(Path(self._output))
