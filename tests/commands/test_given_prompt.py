r"""What somebody gives as a prompt: a text, @FILE, a literal @ or brace; what would be asked by mistake is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from batchcap.commands.begun import BegunJob
from batchcap.commands.given_prompt import read_prompt
from batchcap.core.errors import ExitCode, UsageError
from batchcap.store.folder import JobFolder

NEW_JOB = BegunJob(None)


def begun_with(folder: Path, prompt: Any) -> BegunJob:
    """A job folder as it was begun with a prompt, in the form of a fingerprint."""
    job = JobFolder.open_or_create(folder / "out")
    job.job_path.write_text(json.dumps({"format_version": 2, "fingerprint": {"prompt": prompt}}), encoding="utf-8")
    return BegunJob(str(folder / "out"))


@pytest.mark.parametrize(
    "text",
    [
        "Describe it.",
        'Answer as JSON: {"a": 1, "b": {"c": []}}',
        "{} and { word } and {two words} and {{}} and {1}",
        "LaTeX: \\frac{1}{2}, \\{x\\}",
        "Mail me @ home",
        "  keep the blanks ",
        "a=b",
    ],
)
def test_a_text_is_asked_as_it_is(tmp_path: Path, text: str) -> None:
    assert read_prompt(text, tmp_path, NEW_JOB) == text
    assert read_prompt({"a": text, "b": "x"}, tmp_path, NEW_JOB) == {"a": text, "b": "x"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("@@home, what is it?", "@home, what is it?"),
        ("@@@x", "@@x"),
        (r"Write \{title} and \{{ title }}.", "Write {title} and {{ title }}."),
        (r"@@\{a}", "@{a}"),
    ],
)
def test_what_is_meant_literally(tmp_path: Path, given: str, meant: str) -> None:
    assert read_prompt(given, tmp_path, NEW_JOB) == meant
    assert read_prompt({"a": given}, tmp_path, NEW_JOB) == {"a": meant}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Describe it.\n", "Describe it."),
        ("Zeile 1: ä\r\nline 2\r\n\r\n", "Zeile 1: ä\nline 2"),
        ("\ufeffa=b \n", "a=b "),
        ("@x\n", "@x"),
        ("Write \\{title}.\n", "Write {title}."),
    ],
)
def test_a_file_is_read(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "prompt.txt").write_bytes(content.encode())
    for name in ("@prompt.txt", f"@{tmp_path / 'prompt.txt'}"):
        assert read_prompt(name, tmp_path, NEW_JOB) == text
    assert read_prompt({"a": "x", "b": "@prompt.txt"}, tmp_path, NEW_JOB) == {"a": "x", "b": text}


def write_odd_files(folder: Path) -> None:
    (folder / "empty.txt").write_text("\n\n")
    (folder / "latin.txt").write_bytes(b"\xe4")
    (folder / "unfilled.txt").write_text("Describe {title}.\n")
    (folder / "large.txt").write_text("x" * (1024 * 1024 + 1))
    os.mkfifo(folder / "pipe.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--prompt must not be empty"),
        (" \n", "--prompt must not be empty"),
        ("@", "--prompt names no file after @: write @@ for a text that begins with @"),
        ("@nowhere.txt", "nowhere.txt, which does not exist; write @@"),
        ("@empty.txt", "empty.txt, which is empty"),
        ("@latin.txt", "--prompt names the file 'latin.txt', which can't be read"),
        ("@large.txt", "large.txt, which is larger than 1 MiB"),
        ("@pipe.txt", "pipe.txt, which is not a file"),
        ("@.", "which is not a file"),
        ("@a\0b", "can't be read"),
        ("@~nobody-is-called-so/x", "can't be read"),
        ("@" + "x" * 5000, "can't be read"),
        ("@unfilled.txt", "has {title} in it"),
        ("Describe {title}.", "--prompt has {title} in it, and columns in prompts are not supported yet"),
        ("Describe {título}.", "has {título} in it"),
        ("Describe {{ title }}.", r"write \{{ title }} if the model is to read {{ title }}"),
        ("Describe {{title}}.", "has {{title}} in it"),
        (r"Not \{this}, but {that}.", "has {that} in it"),
    ],
)
def test_what_would_be_asked_by_mistake_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_odd_files(tmp_path)
    with pytest.raises(UsageError) as caught:
        read_prompt(text, tmp_path, NEW_JOB)
    assert caught.value.exit_code is ExitCode.USAGE
    assert message in str(caught.value)
    with pytest.raises(UsageError, match="--prompt b: "):
        read_prompt({"a": "x", "b": text}, tmp_path, NEW_JOB)


@pytest.mark.parametrize("text", ["", "@nowhere.txt", "@@x", "Describe {title}.", r"\{title}"])
def test_a_job_that_was_begun_with_a_text_goes_on_with_it(tmp_path: Path, text: str) -> None:
    assert read_prompt(text, tmp_path, begun_with(tmp_path, text)) == text
    several = {"a": text, "b": "x"}
    assert read_prompt(several, tmp_path, begun_with(tmp_path, [["a", text], ["b", "x"]])) == several


@pytest.mark.parametrize("stored", ["Other {title}.", [["b", "x"], ["a", "Describe {title}."]], 3, [3], None])
def test_another_job_does_not_make_a_text_right(tmp_path: Path, stored: Any) -> None:
    for given in ("Describe {title}.", {"a": "Describe {title}.", "b": "x"}):
        with pytest.raises(UsageError, match=r"has \{title\} in it"):
            read_prompt(given, tmp_path, begun_with(tmp_path, stored))


def test_a_file_that_is_no_job_is_none(tmp_path: Path) -> None:
    for content in ("", "[]", '{"format_version": 99, "fingerprint": {"prompt": ""}}'):
        JobFolder.open_or_create(tmp_path / "out").job_path.write_text(content)
        assert BegunJob(str(tmp_path / "out")).prompt is None
    for name in ("nowhere", "a\0b", "x" * 5000):
        assert BegunJob(name).value("temperature") is None
