"""The pages say what the code does: commands, columns, exit codes, dependencies, links, examples."""

import json
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer

from batchcap.cli import app
from batchcap.commands.jobfile import load_job_file
from batchcap.commands.jobmistakes import _KEYS
from batchcap.config import GenerationConfig, LimitConfig, PlacementConfig, Profile, VisionBackend, VisionConfig
from batchcap.core import errors
from batchcap.core.records import FinishReason, Status, Verdict
from batchcap.core.row_counts import RowCounts
from batchcap.core.setting import fields_of
from batchcap.inputs.reader import Reader
from batchcap.inputs.registry import READERS
from batchcap.inputs.skipped import Skipped
from batchcap.job import recorder
from batchcap.job.settings import part_metadata_of
from batchcap.job.summary import SUMMARY_FORMAT_VERSION, JobState, RunMetrics, Summary
from batchcap.model import bundle
from batchcap.model.bundle import BUNDLE_FILE, Bundle
from batchcap.store import folder, parts, stats
from tests.docs.markdown import (
    PROJECT,
    anchors,
    arguments,
    blocks,
    command_lines,
    pages,
    section,
    table,
    text_of,
    without_blocks,
)

COMMAND = typer.main.get_command(app)
# A stand-in for arguments that a page leaves to the reader.
ELLIPSIS = "…"
PAGES = [str(path.relative_to(PROJECT)) for path in pages()]


def _parse(line: str) -> None:
    """Parse a command line as the program would, without running it; errors are raised."""
    given = arguments(line)
    place = next((number for number, word in enumerate(given) if not word.startswith("-")), len(given))
    COMMAND.make_context("batchcap", [*given[:place], "status"])
    name, rest = given[place], given[place + 1 :]
    command = COMMAND.commands[name]  # type: ignore[attr-defined]
    if rest and ELLIPSIS not in rest:
        command.make_context(name, rest)


def _line_id(value: object) -> str:
    return str(value).replace(" ", "_")[:60]


def test_the_commands_page_is_what_the_program_prints() -> None:
    made = runpy.run_path(str(PROJECT / "docs" / "make_commands.py"))
    assert text_of("docs/commands.md") == made["page"](), "run `make docs`"
    assert set(made["COMMANDS"]) == {"", *COMMAND.commands}  # type: ignore[attr-defined]


def test_the_options_that_most_people_need_come_first() -> None:
    options = [one for one in COMMAND.commands["caption"].params if one.param_type_name == "option"]  # type: ignore[attr-defined]
    options = [one for one in options if not one.hidden]  # those of the log may stand after a command, too
    panels = [one.rich_help_panel for one in options]
    first = [
        "output",
        "model",
        "prompt",
        "max_new_tokens",
        "max_visual_tokens",
        "keep_columns",
        "limit",
        "profile",
        "retry",
        "show",
    ]
    assert [one.name for one in options[:10]] == first
    assert panels[:10] == [None] * 10
    rest = ["Input", "Prompt and decoding", "Image and vision", "Speed and memory", "Limits", "Resume"]
    rest += ["Other forms of the captions", "Operations"]
    assert list(dict.fromkeys(panels[10:])) == rest


def test_the_figure_is_what_its_script_draws() -> None:
    made = runpy.run_path(str(PROJECT / "docs" / "make_figure.py"))
    assert text_of("docs/model.svg") == made["figure"](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _hash, anchor = target.partition("#")
        path = (PROJECT / page).parent / name if name else PROJECT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page} links to {target}"


def test_every_page_is_read() -> None:
    assert {"README.md", "docs/user-guide.md", "jobs/README.md", "sample_data/README.md"} <= set(PAGES)


def _all_command_lines() -> list[tuple[str, str]]:
    found = [(page, line) for page in PAGES for line in command_lines(text_of(page))]
    for path in sorted((PROJECT / "jobs").rglob("*.*")):
        if path.suffix in (".toml", ".service", ".sbatch"):
            lines = re.findall(
                r"(?:/usr/local/bin/|\(|`|^# +|^exec )?(batchcap [^`;\n]+?)(?: 2>&1|`|$)", path.read_text(), re.M
            )
            found += [(path.name, line) for line in lines]
    return found


def test_command_lines_are_found() -> None:
    found = _all_command_lines()
    assert len([page for page, _line in found if page == "README.md"]) >= 9
    assert {path.name for path in (PROJECT / "jobs").glob("*.toml")} <= {page for page, _line in found}
    assert len([page for page, _line in found if page.endswith(".service")]) == 4
    assert [line.split()[1] for page, line in found if page == "array.sbatch"] == ["merge", "--quiet"], (
        "both are parsed"
    )


@pytest.mark.parametrize(("page", "line"), _all_command_lines(), ids=_line_id)
def test_every_command_line_parses(page: str, line: str) -> None:
    _parse(line)


@pytest.mark.parametrize("page", PAGES)
def test_every_caption_command_names_its_model(page: str) -> None:
    for line in text_of(page).replace("\\\n", " ").splitlines():
        if re.search(r"batchcap caption \S.* (--output|-o) ", line):
            assert re.search(r" (--model|-m) ", line), line


def test_a_wrong_command_line_does_not_parse() -> None:
    for line in ("batchcap caption a --output b --no-such-option", "batchcap caption a", "batchcap frob x"):
        with pytest.raises(Exception, match=r"option|Missing|frob"):
            _parse(line)


def test_every_option_that_is_named_exists() -> None:
    commands = [COMMAND, *COMMAND.commands.values()]  # type: ignore[attr-defined]
    known = {name for one in commands for each in one.params for name in (*each.opts, *each.secondary_opts)}
    for page in PAGES:
        named = re.findall(r"`[^`]*?(--[a-z][a-z0-9-]+)", without_blocks(text_of(page)))
        assert set(named) <= {*known, "--help", "--now"}, page  # --now is systemctl's


def _fields(schema: pa.Schema) -> list[list[str]]:
    return [[f"`{field.name}`", str(field.type), "yes" if field.nullable else "no"] for field in schema]


@pytest.mark.parametrize(
    ("heading", "schema"),
    [("## Caption parts", parts.SCHEMA), ("## stats.parquet", stats.SCHEMA)],
    ids=["parts", "stats"],
)
def test_every_column_is_described_as_it_is(heading: str, schema: pa.Schema) -> None:
    rows = table(section(text_of("docs/file-formats.md"), heading))
    assert [[name, kind.replace("float32", "float"), null] for name, kind, null, _meaning in rows] == _fields(schema)


def _names(heading: str) -> list[str]:
    return [row[0].strip("`") for row in table(section(text_of("docs/file-formats.md"), heading))]


def test_the_pages_name_the_formats_of_today() -> None:
    formats = text_of("docs/file-formats.md")
    assert f"This is format {folder.FORMAT_VERSION}." in formats
    for heading, version in (("## summary.json", SUMMARY_FORMAT_VERSION), ("### bundle.json", bundle.FORMAT_VERSION)):
        assert ["`format_version`", str(version)] in table(section(formats, heading))


def test_the_pages_say_what_a_kill_costs() -> None:
    assert f"at most {recorder.FLUSH_ROWS} of them" in " ".join(text_of("docs/operations.md").split())
    assert recorder.FLUSH_INTERVAL_S == 0.5, "the page says about half a second"


def test_every_kind_of_failure_is_described() -> None:
    assert _names("### Kinds of failures") == [str(kind) for kind in errors.ErrorKind]


def test_every_word_in_a_column_is_described() -> None:
    text = section(text_of("docs/file-formats.md"), "## Caption parts")
    for words in (Status, Verdict, FinishReason):
        for word in words:
            assert f"`{word}`" in text


def test_every_field_of_the_summary_is_described() -> None:
    run = RunMetrics(1, 1, 1.0, 1.0, {}, 1.0)
    content = json.loads(Summary(JobState.COMPLETE, errors.ExitCode.COMPLETE, "", 1, RowCounts(), run, {}).to_json())
    assert _names("## summary.json") == list(content)
    text = section(text_of("docs/file-formats.md"), "## summary.json")
    for name in [*content["run"], *JobState]:
        assert f"`{name}`" in text


def test_every_part_of_a_bundle_is_described(tiny_bundle_int4: Bundle) -> None:
    content: dict[str, Any] = json.loads((tiny_bundle_int4.folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    assert _names("### bundle.json") == list(content)
    text = section(text_of("docs/file-formats.md"), "## Bundle")
    for name in [BUNDLE_FILE, *content["files"]]:
        assert f"`{name}`" in text
    fields = section(text_of("docs/file-formats.md"), "### bundle.json")
    for inner in ("source", "geometry", "precision", "check"):
        for name in content[inner]:
            assert f"`{name}`" in fields


def test_every_metadata_key_is_described(tiny_bundle_int4: Bundle) -> None:
    keys = {
        parts.FORMAT_KEY,
        parts.SPAN_KEY,
        parts.TALLY_KEY,
        parts.PROMPTS_KEY,
        parts.RETRIES_KEY,
        *part_metadata_of(tiny_bundle_int4, {"prompt": ""}),
    }
    assert set(_names("### Metadata of a part")) == keys


def test_every_exit_code_has_its_row_in_one_table() -> None:
    heading = "## Exit codes"
    rows = table(section(text_of("docs/operations.md"), heading))
    assert [int(row[0]) for row in rows] == [int(code) for code in errors.ExitCode]
    for page in ("README.md", "docs/user-guide.md"):
        assert "operations.md#exit-codes" in text_of(page)
        assert not re.search(r"^\| 75 ", text_of(page), re.MULTILINE)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]

    def names(requirements: list[str]) -> list[str]:
        return sorted(re.split(r"[<>=!~\[; ]", one)[0] for one in requirements)

    text = section(text_of("docs/architecture.md"), "## Dependencies")
    always, _title, optional = text.partition("Extras, for what few need:")
    assert [row[0].strip("`") for row in table(always)] == names(project["dependencies"])
    assert all(row[1] for row in table(always))
    extras = project["optional-dependencies"]
    development = names(extras.pop("dev"))
    found = [(row[0].strip("`"), row[1].strip("`")) for row in table(optional) if row[2]]
    assert sorted(found) == sorted((name, extra) for extra, wanted in extras.items() for name in names(wanted))
    assert {name for name, _extra in found} <= {*development}, "the tests need them"
    (words,) = re.findall(r"^For development: .*?\n$", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"`([\w-]+)`", words)
    assert sorted(named) == [name for name in development if name not in dict(found)]


@pytest.mark.parametrize("page", ["architecture", "decisions", "extending"])
def test_every_name_in_the_architecture_exists(page: str) -> None:
    text = without_blocks(text_of(f"docs/{page}.md"))
    modules = {
        ".".join(path.relative_to(PROJECT / "batchcap").with_suffix("").parts).removesuffix(".__init__"): path
        for path in (PROJECT / "batchcap").rglob("*.py")
    }
    found = 0
    for name in re.findall(r"`((?:[a-z_]+\.)*[a-z_]+(?:\.[A-Z]\w+)?(?:\.[a-z_]+)?)`", text):
        module = max((known for known in modules if f"{name}.".startswith(f"{known}.")), key=len, default=None)
        if module is None:
            assert "." not in name.removesuffix(".json").removesuffix(".py"), f"{name} is nowhere"
        if module is None or module == name:
            continue
        found += 1
        source = modules[module].read_text(encoding="utf-8")
        for part in name.removeprefix(f"{module}.").split("."):
            assert re.search(rf"^\s*(?:def|class) {part}\b|^{part}\b", source, re.MULTILINE), name
    assert found >= {"architecture": 18, "decisions": 4, "extending": 2}[page]


def test_each_extension_touches_three_files_at_most() -> None:
    text = text_of("docs/extending.md")
    kinds = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert kinds == ["An input kind", "An output form", "An option", "A kernel"]
    for kind in kinds:
        steps = re.findall(r"^(\d)\. ", section(text, f"## {kind}"), re.MULTILINE)
        assert 1 <= len(steps) <= 3, kind


def test_the_lists_to_add_to_are_those_that_are_read() -> None:
    """What extending.md says of a reader, an encoder and a setting."""
    text = text_of("docs/extending.md")
    assert "`inputs.registry.READERS`" in text
    assert all(issubclass(kind, Reader) for kind in READERS.values())
    assert "`vision.backend.load_encoder`" in text
    source = (PROJECT / "batchcap/vision/backend.py").read_text(encoding="utf-8")
    assert {one.name for one in VisionBackend if f"VisionBackend.{one.name}" in source} == {
        "ONNX"
    }  # torch is the other
    assert "`core.setting.setting`" in text
    assert fields_of(GenerationConfig), "settings are fields"


def _toml_examples() -> list[tuple[str, str]]:
    return [(page, block) for page in PAGES for block in blocks(text_of(page), "toml")]


@pytest.mark.parametrize(("page", "example"), _toml_examples(), ids=_line_id)
def test_every_toml_example_loads(page: str, example: str, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(example, encoding="utf-8")
    load_job_file(job)


def test_the_long_example_names_every_key_with_its_default(tmp_path: Path) -> None:
    (example,) = blocks(section(text_of("docs/user-guide.md"), "## Job files"), "toml")
    job = tmp_path / "job.toml"
    job.write_text(example, encoding="utf-8")
    config = load_job_file(job)
    defaults = (GenerationConfig(), VisionConfig(), PlacementConfig(), LimitConfig())
    assert config.profile is Profile.AUTO
    assert (config.generation, config.vision, config.placement, config.limits) == defaults
    for name, keys in _KEYS.items():
        assert not name or f"[{name}]" in example
        for key in keys:
            assert key in _KEYS or re.search(rf"^(# )?{key} = ", example, re.MULTILINE), key


def test_every_message_in_the_trouble_table_is_one_of_ours() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "batchcap").rglob("*.py"))
    said = re.sub(r"\{[^{}]*\}|\"\s*f?\"", "", sources)  # text that goes over two lines, values left out
    said += Skipped().nothing_found("")  # it names the kinds of inputs, which only their readers know
    quoted = re.findall(r'^\| "(.*?)" \|', section(text_of("docs/user-guide.md"), "## When something is wrong"), re.M)
    assert len(quoted) >= 8
    for message in quoted:
        for piece in filter(None, (part.strip(" ,") for part in message.split(ELLIPSIS))):
            assert piece in said, message


def test_every_job_file_loads() -> None:
    for path in (PROJECT / "jobs").glob("*.toml"):
        config = load_job_file(path)
        assert all(Path(one).exists() for one in config.input.inputs), path
