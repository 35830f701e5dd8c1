"""A job file gives the same configuration as the command line; whatever is misspelt in it is refused by name."""

import os
import re
from pathlib import Path

import pytest

from batchcap.config import (
    GenerationConfig,
    InputConfig,
    JobConfig,
    LimitConfig,
    PlacementConfig,
    Profile,
    Prompt,
    VisionConfig,
    VisionDtype,
)
from batchcap.errors import UsageError
from batchcap.jobfile import load_job_file
from batchcap.profiles import NAMES

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
dtype = "fp32"
max_image_pixels = 5000
[placement]
decoders = 2
slots = 3
decoder_threads = 4
vision_threads = 5
patch_budget = 6
queue_mib = 7
rows_per_part = 8
[limits]
limit = 10
max_runtime_s = 60
max_error_rate = 0.25
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
        given=frozenset(NAMES) - {"vision_backend"},
    )


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    config = load_job_file(write(tmp_path, SMALLEST))
    assert config == JobConfig(InputConfig((str(tmp_path / "p"),)), output=str(tmp_path / "o"), given=frozenset())


def test_paths_start_from_the_file_wherever_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    write(tmp_path / "jobs", 'output = "../o"\n[input]\ninputs = ["~/p"]\n')
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    config = load_job_file(Path("jobs/job.toml"))
    assert Path(config.output).resolve() == tmp_path / "o"
    assert config.input.inputs == ("/home/somebody/p",)


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
        ('output = "o"', "needs an [input] table with `inputs`, and `output`; see jobs/ for examples"),
        ('[input]\ninputs = ["p"]', "needs an [input] table with `inputs`, and `output`"),
        ('output = "o"\n[input]\n', "job.toml: input needs `inputs`"),
        ('output = "o"\ninput = "p"', "job.toml: input must be a table"),
        ('output = "o"\n[input]\ninputs = "p"', "job.toml: input: inputs must be a list of strings"),
        ('output = "o"\n[input]\ninputs = [1]', "job.toml: input: inputs must be a list of strings"),
        ('output = "o"\n[input]\ninputs = []', "no input was named"),
        ('outptu = "o"\n' + SMALLEST, "unknown key 'outptu'; known here: input, output, model, profile, generation"),
        ('given = ["slots"]\n' + SMALLEST, "unknown key 'given'; known here: input"),
        ('profile = "quick"\n' + SMALLEST, "job.toml: profile must be one of auto, small, fast"),
        (
            SMALLEST + "[generation]\nmax_tokens = 3",
            "job.toml: generation: unknown key 'max_tokens'; known here: prompt",
        ),
        (SMALLEST + "[generaton]\nseed = 3", "unknown key 'generaton'"),
        (SMALLEST + "[generation]\nseed = true", "job.toml: generation: seed must be of type int, not bool"),
        (SMALLEST + '[generation]\nseed = "3"', "job.toml: generation: seed must be of type int, not str"),
        (SMALLEST + "[generation]\nloop_stop = 1", "loop_stop must be of type bool, not int"),
        (SMALLEST + "[generation]\ntop_p = true", "top_p must be of type float, not bool"),
        (SMALLEST + "[generation]\nprompt = 3", "prompt must be of type str, not int"),
        (SMALLEST + "[generation.prompt]\nshort = 3", "generation: prompt must be a text, or a table of texts"),
        (SMALLEST + "[generation.prompt]\n", "prompt is a table without a prompt"),
        (SMALLEST + '[generation.prompt]\n"a b" = "x"', "'a b' can't name a prompt: a name has letters, digits and _"),
        (SMALLEST + '[generation.prompt]\na = "x"\nA = "y"', "several prompts are called a and A"),
        (SMALLEST + '[vision.dtype]\na = "x"', "job.toml: vision: dtype must be one of auto, bf16, fp32"),
        (SMALLEST + "[generation]\ntop_p = 2.0", "top_p must be above 0 and at most 1"),
        (SMALLEST + '[vision]\ndtype = "fp16"', "job.toml: vision: dtype must be one of auto, bf16, fp32"),
        (SMALLEST + "[vision]\ndtype = 16", "job.toml: vision: dtype must be one of auto, bf16, fp32"),
        (SMALLEST + "[limits]\nlimit = 9223372036854775808", "limits: limit is too large a number"),
        (SMALLEST + "[limits]\nlimit = " + "9" * 10_000, "is not valid TOML"),
        (SMALLEST + "[limits]\nmax_runtime_s = nan", "max_runtime_s must be 0 (no limit) or more"),
        (SMALLEST + "[limits]\nlimit = 1979-05-27", "limits: limit must be of type int, not date"),
        (SMALLEST + "a = " + "[" * 100_000, "is not a job file: its arrays or tables are nested too deeply"),
        (SMALLEST + "a = " + "{a=" * 100_000, "is not a job file: its arrays or tables are nested too deeply"),
        (SMALLEST + "[" + "a." * 50_000 + "a]", "unknown key 'a'"),
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
