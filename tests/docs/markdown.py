"""Reading this project's Markdown pages: code blocks, tables, headings, links, command lines."""

import re
import shlex
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    skipped = {".venv", "demo-output", "build", "node_modules"}
    found = [path for path in PROJECT.rglob("*.md") if not any(part in skipped for part in path.parts)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(PROJECT).parts))


def text_of(name: str) -> str:
    """A page of the project."""
    return (PROJECT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return [body for kind, body in _BLOCK.findall(text) if kind == language]


def without_blocks(text: str) -> str:
    """The page without its code blocks."""
    return _BLOCK.sub("", text)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    _before, found, after = text.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    kept: list[str] = []
    fenced = False
    for line in after.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:  # in a code block it is a comment
            break
        kept.append(line)
    return "".join(kept)


def table(text: str) -> list[list[str]]:
    """The cells of the first table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def anchors(text: str) -> set[str]:
    """What `#…` links to the page can name."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def command_lines(text: str) -> list[str]:
    """Every `batchcap …` command line of a page: in shell blocks and in running text."""
    joined = [block.replace("\\\n", " ") for block in blocks(text, "sh")]
    shell = [line for block in joined for line in block.splitlines() if line.startswith("batchcap")]
    return shell + re.findall(r"`(batchcap [^`]+)`", without_blocks(text))


def arguments(line: str) -> list[str]:
    """The arguments of a command line, its comment left out."""
    return shlex.split(line, comments=True)[1:]
