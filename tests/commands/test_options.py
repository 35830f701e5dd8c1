"""A setting is declared once: options, job files, fingerprint and pages follow from the field, with one default."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from batchcap.cli import app
from batchcap.commands import captioning
from batchcap.commands.begun import BegunJob
from batchcap.commands.forms import WRITINGS, Surroundings
from batchcap.commands.jobfile import load_job_file
from batchcap.commands.jobmodel import build, json_schema, model_of
from batchcap.commands.one_style import OneStyleCommand
from batchcap.commands.options import Given, is_given, options_of
from batchcap.config import MODEL_VARIABLE, GenerationConfig, InputConfig, JobConfig, VisionDtype
from batchcap.core.errors import UsageError
from batchcap.core.setting import NEEDED, Form, SettingsError, all_settings, known_as, setting
from batchcap.engines.profiles import NAMES, Settings
from batchcap.export.checkpoint.options import ExportOptions, FitOptions
from batchcap.store.fingerprint import fingerprint_of
from batchcap.verify.options import VerifyOptions

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CAPTION = {one.name: one for one in COMMANDS["caption"].params}


@dataclass(frozen=True, slots=True)
class TomorrowsGeneration(GenerationConfig):
    """With new settings."""

    language: str | None = setting(None, "Language of the captions.", decides_caption=True, value_before=None)
    taboo: tuple[str, ...] = setting(
        ("a", "b"), "Words to avoid.", file_help="Words.", old_keys=("taboos",), form=Form.COMMAS, decides_caption=True
    )
    patience: int = setting(3, "Tries.", panel="Limits", flags=("--patience", "-p"), at_least=1, at_most=9)


@dataclass(frozen=True, slots=True)
class TomorrowsJob(JobConfig):
    """A job with new settings."""

    generation: TomorrowsGeneration = field(
        default_factory=TomorrowsGeneration, metadata=known_as(panel="Prompt and decoding")
    )


def run(*arguments: str, kind: Any = TomorrowsJob, variables: dict[str, str] | None = None) -> tuple[Any, Any]:
    """What a command with a configuration's options prints, and the configuration that it builds."""
    built = []

    def command(given: Given) -> None:
        """Do it."""
        built.append(given.build(kind))

    made = typer.Typer()
    made.command(cls=OneStyleCommand)(options_of(kind)(command))
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", MODEL_VARIABLE: None, **(variables or {})}
    result = CliRunner().invoke(made, arguments, env=environment)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output, built[0] if built else None


def tomorrows(**given: Any) -> TomorrowsJob:
    return TomorrowsJob(InputConfig(("pictures",)), "out", generation=TomorrowsGeneration(**given))


def test_a_new_field_is_an_option() -> None:
    assert run("pictures", "--output", "out")[1] == tomorrows()
    given = ("--language", "fr", "--taboo", "x, y,", "-p", "4")
    assert run("pictures", "-o", "out", *given)[1] == tomorrows(language="fr", taboo=("x", "y"), patience=4)
    with pytest.raises(SettingsError, match="--patience must be at most 9, not 10"):
        run("pictures", "-o", "out", "--patience", "10")
    with pytest.raises(UsageError, match="--patience must be a whole number, not 'much'"):
        run("pictures", "-o", "out", "--patience", "much")


def test_a_new_field_is_in_the_help_in_the_panel_of_its_table_or_its_own() -> None:
    help_text = run("--help")[0]
    panels = dict(re.findall(r"╭─ (.+?) ─+╮\n(.+?)╰", help_text, re.DOTALL))
    assert re.search(r"--language +<str> +Language of the captions\.", panels["Prompt and decoding"])
    assert re.search(r"--taboo +<str> +Words to avoid\. +\[default: a,b\]", panels["Prompt and decoding"])
    assert re.search(r"--patience +-p +<int> +Tries\. +\[default: 3\]", panels["Limits"])
    assert help_text.count("--patience") == 1
    rest = ["Input", "Prompt and decoding", "Image and vision", "Speed and memory", "Limits", "Resume"]
    rest += ["Other forms of the captions", "Operations"]
    assert list(panels) == ["Arguments", "Options", *rest], "the panels stand as the tables do"


def test_a_new_field_is_a_key_of_job_files() -> None:
    def load(generation: dict[str, Any]) -> Any:
        content = {"output": "out", "input": {"inputs": ["pictures"]}, "generation": generation}
        return build(TomorrowsJob, model_of(TomorrowsJob).model_validate(content, context=Surroundings()))

    assert load({}) == tomorrows()
    assert load({"language": "fr", "taboo": ["x"], "patience": 4}) == tomorrows(language="fr", taboo=("x",), patience=4)
    for wrong in ({"patience": 0}, {"patience": 10}, {"patience": "4"}, {"taboo": "x"}, {"mood": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            load(wrong)


def test_a_new_field_is_in_the_schema_for_editors() -> None:
    known = json_schema(TomorrowsJob)["$defs"]["TomorrowsGeneration"]["properties"]
    assert known["language"] == {"type": "string", "description": "Language of the captions."}
    assert known["taboo"]["description"] == "Words."
    assert known["taboo"]["default"] == ["a", "b"]
    assert known["taboos"]["description"] == "Old name of taboo."
    expected = {"type": "integer", "default": 3, "minimum": 1, "maximum": 9, "description": "Tries."}
    assert known["patience"] == expected


def test_a_new_field_is_in_the_fingerprint_if_it_decides_captions() -> None:
    today = fingerprint_of(JobConfig(InputConfig(("pictures",)), "out"), "m", ("torch", "bf16"))
    later = fingerprint_of(tomorrows(taboo=("x",)), "m", ("torch", "bf16"))
    assert later == {**today, "language": None, "taboo": ["x"]}


def test_every_setting_is_an_option_of_caption_and_says_what_it_is() -> None:
    known = {one.setting.key: one for one in all_settings(JobConfig)}
    assert len(known) == len(list(all_settings(JobConfig))), "two settings of one name"
    assert {name for name, one in CAPTION.items() if not one.hidden} - {"help"} == {*known, "show"}
    for key, one in known.items():
        assert CAPTION[key].help == one.setting.help
        assert one.setting.help


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("caption", [JobConfig]),
        ("doctor", [JobConfig]),
        ("tune", [JobConfig]),
        ("export", [ExportOptions, FitOptions]),
        ("verify", [VerifyOptions]),
    ],
)
def test_an_option_has_the_default_of_its_field(command: str, kinds: list[type[Any]]) -> None:
    options = {one.name: one for one in COMMANDS[command].params}
    known = {one.setting.key: one for kind in kinds for one in all_settings(kind)}
    shared = options.keys() & known.keys()
    assert len(shared) == {"doctor": 5, "tune": 1}.get(command, len(known))
    for key in shared:
        option, one = options[key], known[key]
        assert option.required is (one.default is NEEDED), key
        if one.default is not NEEDED:
            assert option.default == WRITINGS[one.setting.form].shown(one.default), key


def caption(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> JobConfig:
    """The job that a command line of `caption` asks for."""
    jobs: list[JobConfig] = []
    monkeypatch.setattr(captioning, "_run", lambda config, _show: jobs.append(config))
    result = CliRunner().invoke(app, ["caption", *arguments], catch_exceptions=False, env={MODEL_VARIABLE: None})
    assert result.exit_code == 0, result.output
    return jobs[0]


def test_command_line_job_file_and_code_have_the_same_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = JobConfig(InputConfig((str(tmp_path / "p"),)), str(tmp_path / "o"))
    expected = replace(plain, explicit=frozenset())
    assert caption(monkeypatch, str(tmp_path / "p"), "-o", str(tmp_path / "o")) == expected
    (tmp_path / "job.toml").write_text('output = "o"\n[input]\ninputs = ["p"]\n')
    assert load_job_file(tmp_path / "job.toml") == expected
    assert Settings() == Settings.of(plain)


def test_what_is_given_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = str(tmp_path / "o")
    assert set(NAMES) <= {one.setting.key for one in all_settings(JobConfig)}
    config = caption(monkeypatch, "p", "-o", out, "--vision-dtype", "fp32", "--slots", "24", "--seed", "1")
    assert config.explicit == {"vision_dtype", "slots"}, "24 is the default, and given"
    assert (config.vision.dtype, config.generation.seed) == (VisionDtype.FP32, 1)
    (tmp_path / "job.toml").write_text(
        'output = "o"\n[input]\ninputs = ["p"]\n[vision]\nbackend = "auto"\nmax_visual_tokens = 64\n'
        "[placement]\nslots = 24\nrows_per_part = 9\n"
    )
    assert load_job_file(tmp_path / "job.toml").explicit == {"vision_backend", "slots"}


def test_whether_an_option_is_given() -> None:
    found: dict[str, bool] = {}

    def command(context: typer.Context, given: Given) -> None:
        found.update({name: is_given(context, name) for name in ("model", "limit", "seed", "nothing")})
        assert given["model"] == "m"

    made = typer.Typer()
    made.command()(options_of(JobConfig)(command))
    done = CliRunner().invoke(made, ["p", "-o", "o", "--limit", "0"], env={MODEL_VARIABLE: "m"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert found == {"model": True, "limit": True, "seed": False, "nothing": False}


def test_every_form_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("What is it?\n")
    prompts = ("--prompt", f"a=@{tmp_path / 'ask.txt'}", "--prompt", "b=Where?")
    lists = ("--keep-columns", " x,y , ", "--retry", "", "--picture-timeout", "5")
    config = caption(monkeypatch, "p", "q", "-o", str(tmp_path / "o"), *prompts, *lists)
    assert config.input.inputs == ("p", "q")
    assert config.input.keep_columns == ("x", "y")
    assert config.generation.prompt == {"a": "What is it?", "b": "Where?"}
    assert config.limits.image_timeout_s == 5
    assert run("--images", "a", "--images", "b", kind=VerifyOptions)[1] == VerifyOptions(("a", "b"))
    assert run(kind=FitOptions)[1] == FitOptions()


def test_a_home_folder_is_found_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert caption(monkeypatch, "p", "-o", "~/o").output == str(tmp_path / "o")


def test_options_stand_as_their_command_asks() -> None:
    names = [one.name for one in COMMANDS["export"].params if not one.hidden]
    fit = ["calibrate", "auto", "max_kl", "prompt"]
    options = ["precision", "block_size", "algorithm", "int8_matrices"]
    assert names == ["checkpoint", "output", *options, *fit, "context", "overwrite"]
    assert {one.rich_help_panel for one in COMMANDS["doctor"].params if one.param_type_name == "option"} == {None}


def test_the_prompt_of_a_job_that_is_begun_is_taken_as_it_is() -> None:
    begun = BegunJob(None)
    begun.__dict__["_stored"] = {"prompt": "1={title}"}
    (prompt,) = [one.setting for one in all_settings(JobConfig) if one.setting.key == "prompt"]
    writing = WRITINGS[prompt.form]
    assert writing.read(["1={title}"], Surroundings(begun=begun)) == "1={title}"
    assert writing.read_in_file("1={title}", Surroundings(begun=begun)) == "1={title}"
    with pytest.raises(SettingsError, match="must not be called '1'"):
        writing.read(["1={title}"], Surroundings())
    with pytest.raises(SettingsError, match=r"has \{title\} in it"):
        writing.read_in_file("1={title}", Surroundings())


def test_bounds_of_an_export_and_a_verification_name_their_options() -> None:
    with pytest.raises(UsageError, match=r"^--block-size must be one of 32, 64, 128, 256, not 5; --context must be at"):
        ExportOptions(block_size=5, context=1)
    with pytest.raises(UsageError, match=r"^--limit must be at least 1, not 0$"):
        VerifyOptions(limit=0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("batchcap caption --vision-", ["--vision-dtype", "--vision-backend", "--vision-threads"]),
        ("batchcap caption --vision-dtype ", ["auto", "bf16", "fp32", "int8"]),
        ("batchcap export --precision f", ["fp32"]),
    ],
)
def test_a_shell_completes_options_and_their_words(words: str, expected: list[str]) -> None:
    variables = {"_BATCHCAP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = CliRunner().invoke(app, [], env=variables, prog_name="batchcap")
    assert done.output.split() == expected
