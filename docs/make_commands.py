"""Owns `docs/commands.md`: the help text of every command, as the program prints it. Run it with `make docs`."""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
COMMANDS = ("", "caption", "run", "merge", "convert", "export", "verify", "status", "report", "doctor", "tune")
WIDTH_CHARACTERS = 100
HEADER = """\
# Commands

What `--help` prints for every command. This page is made by `make docs`; a test compares it with the program.
"""
_PRINT_HELP = "from batchcap.cli import app; app(prog_name='batchcap')"


def help_text(command: str) -> str:
    """What `batchcap COMMAND --help` prints, at a fixed width and without colour."""
    # Only this environment: COLUMNS, FORCE_COLOR and the like of the caller would change the page.
    environment = {
        "COLUMNS": str(WIDTH_CHARACTERS),
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PYTHONUTF8": "1",
        "PATH": os.environ["PATH"],
    }
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_HELP, *arguments],
        cwd=PAGE.parents[1],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


def page() -> str:
    """The whole page."""
    sections = []
    for command in COMMANDS:
        name = f"batchcap {command}".strip()
        sections.append(f"\n## {name}\n\n```text\n{help_text(command)}\n```\n")
    return HEADER + "".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
