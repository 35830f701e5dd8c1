"""Owns the settings that say who is told how a run goes; none of them decides a caption."""

import shlex
from dataclasses import dataclass

from batchcap.core.setting import require_sense, setting
from batchcap.core.text import is_address

METRICS_SUFFIX = ".prom"


def _file_fault(name: str | None) -> str:
    if name is None:
        return ""
    if not name or "\0" in name:
        return "must name a file"
    return f"must be a file of this machine, not the address {name}" if is_address(name) else ""


def _metrics_fault(name: str | None) -> str:
    if name is None or _file_fault(name):
        return _file_fault(name)
    is_read = name.endswith(METRICS_SUFFIX) and not f"/{name}".endswith(f"/{METRICS_SUFFIX}")
    return "" if is_read else f"must end in {METRICS_SUFFIX}: node_exporter reads no other files"


def _command_fault(command: str | None) -> str:
    if command is None:
        return ""
    if "\0" in command:
        return "must be a command: none has a NUL in it"
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"must be a command as a shell splits it into words: {str(error).lower()}"
    return "" if words and words[0] else "must not be empty: name a program"


@dataclass(frozen=True, slots=True)
class OperationsConfig:
    """Who is told how a run goes; see the help of each setting."""

    metrics: str | None = setting(
        None,
        "Write the state of the run into this .prom file every few seconds, for Prometheus (node_exporter's textfile "
        "collector).",
        metavar="FILE",
        check=_metrics_fault,
    )
    events: str | None = setting(
        None,
        "Append what happens to this file, a line of JSON each: start, parts, restarts of workers, stop, end.",
        metavar="FILE",
        check=_file_fault,
    )
    on_end: str | None = setting(
        None,
        "Run this program when the run has ended, also if it failed. BATCHCAP_EXIT_CODE, BATCHCAP_OUTPUT and "
        "BATCHCAP_SUMMARY tell it how. It never changes the exit code.",
        metavar="COMMAND",
        check=_command_fault,
    )

    def __post_init__(self) -> None:
        require_sense(self)
