"""Owns what a person gives as a prompt: a text, or @FILE that holds it; what is no prompt by its looks is refused."""

import re
from pathlib import Path

from batchcap.commands.begun import BegunJob
from batchcap.config import PROMPT_NAME, prompt_name_fault
from batchcap.core.setting import Mistake, SettingsError

_NAME = r"[^\W\d]\w*"
# A column to be filled in, as other programs write it: {title}, {{ title }}. JSON such as {"a": 1} is none.
_PLACEHOLDER = re.compile(rf"(\\?)(\{{\{{\s*{_NAME}\s*\}}\}}|\{{{_NAME}\}})")
# What stands before = and was meant as a name, though it may be none: `1=x`, `my-name=x`.
_NAME_BY_ITS_LOOKS = re.compile(r"[\w.-]+")
# A prompt fills some pages at most; what is larger is another file by mistake.
_MAX_BYTES = 1024 * 1024


def read_prompt_options(given: list[str], base: Path, begun: BegunJob) -> str | dict[str, str]:
    """The prompt, or prompts by name, of the command line: one text, or several of NAME=TEXT.

    Args:
        given: each `--prompt`.
        base: folder that relative paths of files start from.
        begun: the job, which goes on if it has exactly these texts.

    Raises:
        SettingsError: a name is missing, double or none, or as for `read_prompt`.
    """
    named: dict[str, str] = {}
    for text in given:
        name, equals, asked = text.partition("=")
        if equals and PROMPT_NAME.fullmatch(name):
            if name in named:
                raise SettingsError([Mistake("prompt", f"has two prompts called {name}: give each another name")])
            named[name] = asked
            continue
        if len(given) > 1:
            rule = (
                "with several prompts each needs a name: write --prompt NAME=TEXT, with a NAME of letters, digits and _"
            )
            raise SettingsError([Mistake("prompt", f"{text!r} has no name; {rule}")])
        if equals and _NAME_BY_ITS_LOOKS.fullmatch(name) and text != begun.prompt:
            rule = f"{prompt_name_fault(name)}; for this very text, put it into a file and write @FILE"
            raise SettingsError([Mistake("prompt", rule)])
        return read_prompt(text, base, begun)
    return read_prompt(named, base, begun)


def read_prompt(given: str | dict[str, str], base: Path, begun: BegunJob) -> str | dict[str, str]:
    r"""The prompt, or prompts by name, that somebody means.

    `@FILE` is the content of a file, and `@@` at the beginning stands for `@`. `\{title}` stands for `{title}`, which
    is refused, since it looks as if something would be filled in.

    Args:
        given: the texts as they are written.
        base: folder that relative paths of files start from.
        begun: the job, which goes on if it has exactly these texts.

    Raises:
        SettingsError: a text is empty, has something to be filled in, or its file can't be read.
    """
    texts = {"": given} if isinstance(given, str) else given
    if all(_is_plain(text) for text in texts.values()) or _same(given, begun.prompt):
        return given
    mistakes, found = [], {}
    for name, text in texts.items():
        try:
            found[name] = _meant(text, base)
        except _PromptError as error:
            mistakes.append(Mistake("prompt", f"{name}: {error}" if name else str(error)))
    if mistakes:
        raise SettingsError(mistakes)
    return found[""] if isinstance(given, str) else found


class _PromptError(Exception):
    """What is wrong with a text, in words that follow the option's name."""


def _same(given: str | dict[str, str], begun: str | dict[str, str] | None) -> bool:
    if isinstance(given, dict) and isinstance(begun, dict):
        return list(given.items()) == list(begun.items())  # the order is that of the columns
    return given == begun


def _is_plain(text: str) -> bool:
    return bool(text.strip()) and not text.startswith("@") and _PLACEHOLDER.search(text) is None


def _meant(text: str, base: Path) -> str:
    if text.startswith("@@"):
        text = text[1:]
    elif text.startswith("@"):
        text = _read(text[1:], base)
    if not text.strip():
        raise _PromptError("must not be empty: write what to ask about each image")
    unfilled = next((found[2] for found in _PLACEHOLDER.finditer(text) if not found[1]), None)
    if unfilled is not None:
        raise _PromptError(
            f"has {unfilled} in it, and columns in prompts are not supported yet, so nothing would be filled in: "
            f"leave it out, or write \\{unfilled} if the model is to read {unfilled}"
        )
    return _PLACEHOLDER.sub(r"\2", text)


def _read(name: str, base: Path) -> str:
    how_else = "write @@ for a text that begins with @"
    if not name:
        raise _PromptError(f"names no file after @: {how_else}")
    try:
        path = base / Path(name).expanduser()
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise _PromptError(f"names {path}, which is not a file: {how_else}")
        if path.stat().st_size > _MAX_BYTES:
            raise _PromptError(f"names {path}, which is larger than {_MAX_BYTES >> 20} MiB and no prompt")
        text = path.read_text(encoding="utf-8-sig").rstrip("\r\n")  # some editors begin a file with the mark
    except FileNotFoundError:
        raise _PromptError(f"names the file {path}, which does not exist; {how_else}") from None
    except (OSError, ValueError, RuntimeError) as error:  # no UTF-8, a NUL in the name, nobody's home folder
        raise _PromptError(f"names the file {name!r}, which can't be read ({error}); {how_else}") from None
    if not text.strip():
        raise _PromptError(f"names the file {path}, which is empty: write into it what to ask about each image")
    return text
