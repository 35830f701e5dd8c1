"""A job file gives the same configuration as the command line; whatever is misspelt in it is refused by name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from batchcap.cli import app
from batchcap.commands.jobfile import load_job_file
from batchcap.commands.jobmistakes import _KEYS
from batchcap.config import (
    GenerationConfig,
    InputConfig,
    JobConfig,
    LimitConfig,
    OperationsConfig,
    PlacementConfig,
    Profile,
    VisionConfig,
    VisionDtype,
)
from batchcap.core.errors import UsageError
from batchcap.core.prompts import Prompt
from batchcap.engines.profiles import NAMES

SMALLEST = 'output = "o"\n[input]\ninputs = ["p"]\n'
EVERYTHING = """
output = "out"
model = "bundle"
profile = "small"
[input]
inputs = ["pictures", "/abs/more/*.parquet"]
image_column = "image"
id_column = "key"
image_root = "root"
keep_columns = ["*"]
[generation]
prompt = "Say it."
max_new_tokens = 7
temperature = 1
top_p = 0.5
top_k = 3
repetition_penalty = 1.5
seed = 9
loop_stop = false
[vision]
max_visual_tokens = 64
vision_dtype = "fp32"
max_image_pixels = 5000
[speed]
decoders = 2
slots = 3
decoder_threads = 4
vision_threads = 5
patch_budget = 6
queue_mib = 7
rows_per_part = 8
[limits]
limit = 10
max_runtime = 60
max_error_rate = 0.25
[operations]
metrics = "m.prom"
events = "/abs/e.jsonl"
on_end = "./tell 'a b' c"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_setting_is_read(tmp_path: Path) -> None:
    assert load_job_file(write(tmp_path, EVERYTHING)) == JobConfig(
        InputConfig(
            (str(tmp_path / "pictures"), "/abs/more/*.parquet"), "image", "key", str(tmp_path / "root"), ("*",)
        ),
        output=str(tmp_path / "out"),
        model=str(tmp_path / "bundle"),
        profile=Profile.SMALL,
        generation=GenerationConfig("Say it.", 7, 1.0, 0.5, 3, 1.5, 9, loop_stop=False),
        vision=VisionConfig(64, VisionDtype.FP32, 5000),
        placement=PlacementConfig(2, 3, 4, 5, 6, 7, 8),
        limits=LimitConfig(10, 60.0, 0.25),
        operations=OperationsConfig(str(tmp_path / "m.prom"), "/abs/e.jsonl", f"{tmp_path}/tell 'a b' c"),
        explicit=frozenset(NAMES) - {"vision_backend"},
    )


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    config = load_job_file(write(tmp_path, SMALLEST))
    assert config == JobConfig(InputConfig((str(tmp_path / "p"),)), output=str(tmp_path / "o"), explicit=frozenset())


def test_paths_start_from_the_file_wherever_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    write(tmp_path / "jobs", 'output = "../o"\n[input]\ninputs = ["~/p"]\n')
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    config = load_job_file(Path("jobs/job.toml"))
    assert Path(config.output).resolve() == tmp_path / "o"
    assert config.input.inputs == ("/home/somebody/p",)


def test_a_program_without_a_path_is_looked_for_where_programs_are(tmp_path: Path) -> None:
    config = load_job_file(write(tmp_path, f'{SMALLEST}[operations]\non_end = "mail -s ./x you"\n'))
    assert config.operations.on_end == "mail -s ./x you"


def test_several_prompts_are_a_table_in_their_order(tmp_path: Path) -> None:
    text = SMALLEST + '[generation]\nseed = 3\n[generation.prompt]\nwords = "Name it."\nat_length = "a = b?"\n'
    generation = load_job_file(write(tmp_path, text)).generation
    assert generation == GenerationConfig({"words": "Name it.", "at_length": "a = b?"}, seed=3)
    assert generation.prompts == (Prompt("Name it.", "words"), Prompt("a = b?", "at_length"))
    plain = load_job_file(write(tmp_path, SMALLEST + '[generation]\nprompt = "words=Name it."\n'))
    assert plain.generation.prompts == (Prompt("words=Name it."),), "only the command line has names in the text"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output = ", "is not valid TOML"),
        ('output = "o"', "job.toml: the table [input] with `inputs` is missing; see jobs/ for examples"),
        ('[input]\ninputs = ["p"]', "job.toml: `output` is missing; see jobs/ for examples"),
        ('output = "o"\n[input]\n', "job.toml: [input] `inputs` is missing; see jobs/ for examples"),
        ('output = "o"\ninput = "p"', "job.toml: [input]: must be a table, not a text"),
        ('output = "o"\n[[input]]\n', "job.toml: [input]: must be a table, not a list"),
        ('output = "o"\n[input]\ninputs = "p"', "job.toml: [input] inputs: must be a list of texts, not a text"),
        ('output = "o"\n[input]\ninputs = ["a", 1]', "inputs: must be a list of texts, not a list with 1 in it"),
        ('output = "o"\n[input]\ninputs = []', "job.toml: [input] inputs: must not be empty: give a folder"),
        ('output = ""\n[input]\ninputs = ["p"]', "job.toml: output: must not be an empty text: name the job folder"),
        ('outptu = "o"\n[input]\ninputs = ["p"]', "job.toml: unknown key 'outptu': did you mean 'output'?"),
        ('output = "o"\n[inputs]\ninputs = ["p"]', "job.toml: unknown table [inputs]: did you mean [input]?"),
        ('given = ["slots"]\n' + SMALLEST, "unknown key 'given': known here are input, output, model, profile"),
        ("[zzz]\na = 1\n" + SMALLEST.replace("output", "\noutput"), "unknown table [zzz]: known are [input], [gener"),
        ('profile = "quick"\n' + SMALLEST, "job.toml: profile: must be one of auto, small, fast, not 'quick'"),
        (
            SMALLEST + "[generation]\nmax_tokens = 3",
            "job.toml: unknown key 'max_tokens' in [generation]: did you mean 'max_new_tokens'?",
        ),
        (SMALLEST + "[generation]\nmax-new-tokens = 3", "did you mean 'max_new_tokens'?"),
        (SMALLEST + "[generation]\nlimit = 3", "unknown key 'limit' in [generation]: it belongs in [limits]"),
        (SMALLEST + "[limits]\ndtype = 'int8'", "unknown key 'dtype' in [limits]: it belongs in [vision]"),
        ('inputs = ["p"]\n' + SMALLEST, "job.toml: unknown key 'inputs': it belongs in [input]"),
        ('[input]\ninputs = ["p"]\noutput = "o"', "unknown key 'output' in [input]: it belongs above the first table"),
        (SMALLEST + "[generaton]\nseed = 3", "unknown table [generaton]: did you mean [generation]?"),
        (
            SMALLEST + "[generation]\nseed = true",
            "job.toml: [generation] seed: must be a whole number, not true or false",
        ),
        (SMALLEST + '[generation]\nseed = "3"', "job.toml: [generation] seed: must be a whole number, not a text"),
        (SMALLEST + "[generation]\nseed = 3.0", "job.toml: [generation] seed: must be a whole number, not 3.0"),
        (SMALLEST + "[generation]\nloop_stop = 1", "loop_stop: must be true or false, not 1"),
        (SMALLEST + "[generation]\ntop_p = true", "top_p: must be a number, not true or false"),
        (SMALLEST + "[generation]\nprompt = 3", "[generation] prompt: must be a text, or a table of texts, not 3"),
        (SMALLEST + "[generation.prompt]\nshort = 3", "must be a text, or a table of texts, not a table with 3 in it"),
        (SMALLEST + "[generation.prompt]\n", "prompt: is a table without a prompt"),
        (SMALLEST + '[generation.prompt]\n"a b" = "x"', "prompt: must not be called 'a b': a name has letters"),
        (SMALLEST + '[generation.prompt]\na = "x"\nA = "y"', "prompt: has several prompts called a and A"),
        (SMALLEST + '[vision.dtype]\na = "x"', "[vision] dtype: must be one of auto, bf16, fp32, int8, not a table"),
        (SMALLEST + "[generation]\ntop_p = 2.0", "job.toml: [generation] top_p: must be at most 1, not 2"),
        (SMALLEST + '[vision]\ndtype = "fp16"', "not 'fp16': did you mean 'bf16'?"),
        (
            SMALLEST + "[vision]\nvision_dtype = 16",
            "[vision] vision_dtype: must be one of auto, bf16, fp32, int8, not 16",
        ),
        (SMALLEST + "[limits]\nlimit = 9223372036854775808", "[limits] limit: is too large a number"),
        (SMALLEST + f"[limits]\nlimit = 0x{'f' * 10_000}", "[limits] limit: is too large a number"),
        (SMALLEST + f"[limits]\nmax_error_rate = 0x{'f' * 10_000}", "must be a number, not so large a number"),
        (SMALLEST + "[limits]\nlimit = " + "9" * 10_000, "is not valid TOML"),
        (SMALLEST + "[limits]\nmax_runtime = nan", "max_runtime: must be 0 (no limit) or more, not nan"),
        (SMALLEST + "[limits]\nmax_runtime_s = -1", "[limits] max_runtime_s: must be 0 (no limit) or more, not -1"),
        (SMALLEST + "[placement]\nslots = 0", "job.toml: [placement] slots: must be at least 1, not 0"),
        (SMALLEST + "[speed]\nslots = 0", "job.toml: [speed] slots: must be at least 1, not 0"),
        (SMALLEST + "[limits]\nlimit = 1979-05-27", "limit: must be a whole number, not a date"),
        (SMALLEST + "[limits]\nlimit = 1979-05-27T07:32:00Z", "limit: must be a whole number, not a date and time"),
        (
            SMALLEST + '[resume]\nretry = ["fail"]',
            "retry: must be some of failed, truncated, repeated, degenerate, empty",
        ),
        (SMALLEST + "a = " + "[" * 100_000, "is not a job file: its arrays or tables are nested too deeply"),
        (SMALLEST + "a = " + "{a=" * 100_000, "is not a job file: its arrays or tables are nested too deeply"),
        (SMALLEST + "[" + "a." * 990 + "a]", "unknown table [a]"),
        (SMALLEST + "[generation.prompt." + "a." * 990 + "a]", "not a table with a table in it"),
        ('output = "a\\u0000b"\n[input]\ninputs = ["p"]', "is no path: a path has no NUL in it"),
        ('output = "~nobody-is-called-so/o"\n[input]\ninputs = ["p"]', "is no path"),
        ("\0", "is not valid TOML"),
        ('"" = 1\n' + SMALLEST, "unknown key ''"),
    ],
    ids=lambda value: value[-40:],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_job_file(write(tmp_path, text))


MANY = """
output = "o"
prfile = "small"
[inputs]
inputs = ["p"]
[generation]
max_tokens = 3
seed = "1"
prompt = ""
[vision]
dtype = "fp8"
[placement]
slots = 0
decoders = 1.5
[limits]
limit = -1
"""


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_job_file(write(tmp_path, MANY))
    first, *lines = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'job.toml'} has 9 mistakes:"
    assert {line.strip() for line in lines} == {
        "unknown key 'prfile': did you mean 'profile'?",
        "unknown table [inputs]: did you mean [input]?",
        "unknown key 'max_tokens' in [generation]: did you mean 'max_new_tokens'?",
        "[generation] seed: must be a whole number, not a text",
        "[generation] prompt: must not be empty: write what to ask about each image",
        "[vision] dtype: must be one of auto, bf16, fp32, int8, not 'fp8'",
        "[placement] slots: must be at least 1, not 0",
        "[placement] decoders: must be a whole number, not 1.5",
        "[limits] limit: must be 0 (all) or more, not -1",
    }


OLD_AND_NEW = [
    ("[placement]\nslots = 3\ndecoders = 2", "[speed]\nslots = 3\ndecoders = 2"),
    ('[vision]\ndtype = "int8"\nbackend = "onnx"', '[vision]\nvision_dtype = "int8"\nvision_backend = "onnx"'),
    ("[limits]\nmax_runtime_s = 60", "[limits]\nmax_runtime = 60"),
    ("[limits]\npicture_timeout_s = 60", "[limits]\nimage_timeout = 60"),
    ("[limits]\npicture_timeout = 60", "[limits]\nimage_timeout = 60"),
]


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_old_names_are_read_for_ever(tmp_path: Path, old: str, new: str) -> None:
    plain = load_job_file(write(tmp_path, SMALLEST))
    now = load_job_file(write(tmp_path, SMALLEST + new))
    assert now != plain
    assert load_job_file(write(tmp_path, SMALLEST + old)) == now


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[placement]\nslots = 3\n[speed]\ndecoders = 1",
            "'speed' and 'placement' are the same setting: give 'speed' alone",
        ),
        (
            '[vision]\ndtype = "int8"\nvision_dtype = "int8"',
            "[vision] 'vision_dtype' and 'dtype' are the same setting: give 'vision_dtype' alone",
        ),
        (
            "[limits]\npicture_timeout = 1\npicture_timeout_s = 1",
            "[limits] 'picture_timeout' and 'picture_timeout_s' are the same setting: give 'image_timeout' alone",
        ),
    ],
)
def test_an_old_name_beside_the_new_one_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_job_file(write(tmp_path, SMALLEST + text))


def test_every_key_has_the_name_of_its_option() -> None:
    command = typer.main.get_command(app).commands["caption"]  # type: ignore[attr-defined]
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    parameters = {parameter.name for parameter in shown} - {"show"}
    keys = {key for table in _KEYS.values() for key in table} - set(_KEYS)
    assert keys == parameters


def test_whole_numbers_become_numbers(tmp_path: Path) -> None:
    config = load_job_file(write(tmp_path, SMALLEST + "[generation]\ntemperature = 1\n[limits]\nmax_runtime = 60\n"))
    assert (type(config.generation.temperature), type(config.limits.max_runtime_s)) == (float, float)


def test_pydantic_is_loaded_for_job_files_alone() -> None:
    code = "import sys, batchcap.commands.jobfile, batchcap.job.run; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no job file at .*nothing\.toml"):
        load_job_file(tmp_path / "nothing.toml")
    with pytest.raises(UsageError, match="can't read the job file"):
        load_job_file(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'output = "\xe4"')
    with pytest.raises(UsageError, match="can't read the job file"):
        load_job_file(tmp_path / "latin.toml")


def test_what_is_no_plain_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError, match="it is a folder, pipe or device, not a file"):
            load_job_file(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    os.truncate(path, 1 << 40)
    with pytest.raises(UsageError, match="is not a job file: it is larger than 4 MiB"):
        load_job_file(path)


@pytest.mark.parametrize("content", [b"\xff\xfe" + SMALLEST.encode("utf-16-le"), b"\xc0\x80", b"PAR1\x15\x80"])
def test_other_encodings_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job.toml").write_bytes(content)
    with pytest.raises(UsageError, match="can't read the job file"):
        load_job_file(tmp_path / "job.toml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert load_job_file(write(tmp_path, "\ufeff" + SMALLEST)) == load_job_file(write(tmp_path, SMALLEST))


def test_addresses_are_kept_so_that_they_are_refused_as_such(tmp_path: Path) -> None:
    text = 'output = "o"\n[input]\ninputs = ["https://example.org/a.parquet", "p"]\n'
    assert load_job_file(write(tmp_path, text)).input.inputs == ("https://example.org/a.parquet", str(tmp_path / "p"))


def test_other_forms_at_addresses(tmp_path: Path) -> None:
    """Only where the file allows it; and an address is no path that starts from the file's folder."""
    path = tmp_path / "job.toml"
    also = '[outputs]\nalso = ["jsonl:s3://bucket/x.jsonl"]\n'
    path.write_text(SMALLEST + also)
    with pytest.raises(UsageError, match=r"outputs\.also names the address s3://bucket/x\.jsonl.*allow_remote = true"):
        load_job_file(path)
    path.write_text(SMALLEST + "allow_remote = true\n" + also)
    assert load_job_file(path).outputs.also == ("jsonl:s3://bucket/x.jsonl",)
