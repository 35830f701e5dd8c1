"""Several prompts an image, and equal images: a row for each input row, captions as of each prompt alone."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.commands.begun import BegunJob
from batchcap.commands.given_prompt import read_prompt_options
from batchcap.core.errors import ExitCode, UsageError
from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from tests.e2e.command import ONNX, assert_refused, batchcap, read_rows
from tests.e2e.conftest import Job
from tests.e2e.inputs import image, write_images, write_parquet
from tests.e2e.process import Process, durable_rows, read_summary, run

pytestmark = pytest.mark.slow

SHORT, LONG, TABLE = "Name it.", "Describe this image at length, please.", "a = b?"
ASKED = ("--prompt", f"short={SHORT}", "--prompt", f"long={LONG}", "--prompt", f"table={TABLE}")
NAMES = {"short": SHORT, "long": LONG, "table": TABLE}
OWN = ("caption", "thinking", "verdict", "finish_reason", "prompt_tokens", "new_tokens")
ROW = (
    "id",
    "source",
    "row",
    "status",
    "error_kind",
    "error_message",
    "visual_tokens",
    "width",
    "image_sha256",
    "label",
)
DECIDED = (*ROW, *(f"{column}_{name}" for column in OWN for name in NAMES))


def small_job(job: Job, folder: Path, images: int = 24, rows: int = 20) -> Job:
    """Images and Parquet rows, with a failure among both."""
    inputs = (str(write_images(folder / "pictures", images)), str(write_parquet(folder / "rows.parquet", rows)))
    return Job(inputs, job.model, job.expected)


def decided(output: Path) -> list[dict[str, Any]]:
    """What a run decides of its rows; times differ."""
    return [{name: row[name] for name in DECIDED if name in row} for row in read_rows(output)]


@pytest.fixture(scope="module")
def asked(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[dict[str, Any]]]:
    """A job with three prompts, run without interruption, and its rows."""
    folder = tmp_path_factory.mktemp("asked")
    begun = small_job(job, folder)
    run(*begun.arguments(folder / "out", *ASKED))
    return begun, decided(folder / "out")


def test_each_prompt_gives_what_it_gives_alone(asked: tuple[Job, list[dict[str, Any]]], tmp_path: Path) -> None:
    job, rows = asked
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(rows) == 45
    assert 1 < len(failed) < 6
    assert all(row[f"caption_{name}"] is None for row in failed for name in NAMES)
    assert len({row[f"caption_{name}"] for row in rows for name in NAMES}) > 1.5 * len(rows), "prompts must matter"
    for name, text in NAMES.items():
        # Without a name the columns are the plain ones, and the text may hold what looks like one after a blank.
        run(*job.arguments(tmp_path / name, "--prompt", text, "--slots", "3"))
        alone = read_rows(tmp_path / name)
        for row, one in zip(rows, alone, strict=True):
            assert {column: row[column] for column in ROW} == {column: one[column] for column in ROW}
            assert {column: row[f"{column}_{name}"] for column in OWN} == {column: one[column] for column in OWN}


def test_interrupted_and_resumed_is_uninterrupted(asked: tuple[Job, list[dict[str, Any]]], tmp_path: Path) -> None:
    job, rows = asked
    output = tmp_path / "out"
    slow = job.arguments(output, *ASKED, "--slots", "1", "--rows-per-part", "8")
    for kill in range(2):
        process = Process(*slow, warm=True)
        before = durable_rows(output)[0] if kill else 0
        assert process.wait_until(lambda before=before: durable_rows(output)[0] > before, interval_s=0.02)
        process.signal_group(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.wait_for_group()
    durable = durable_rows(output)[0]
    assert 0 < durable < len(rows)
    last = run(*job.arguments(output, *ASKED, "--slots", "5", "--rows-per-part", "8"))
    assert last.done_before == durable
    assert decided(output) == rows


def test_other_prompts_are_another_job(asked: tuple[Job, list[dict[str, Any]]], tmp_path: Path) -> None:
    job, _rows = asked
    output = tmp_path / "out"
    run(*job.arguments(output, *ASKED, "--limit", "2"))
    other = ("--prompt", f"short={SHORT}", "--prompt", f"long={LONG}", "--prompt", "table=Which?")
    turned = (*ASKED[2:4], *ASKED[:2], *ASKED[4:])
    for given in (other, turned, ASKED[:4], ("--prompt", SHORT), ()):
        process = run(*job.arguments(output, *given, "--limit", "2"), expect=ExitCode.NOT_SAME_JOB)
        assert "--prompt: was" in process.stderr
    run(*job.arguments(output, *ASKED, "--limit", "2"))


def test_a_job_file_shows_and_status(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    (tmp_path / "pictures").mkdir()
    for number in (1, 2):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(image(number))
    (tmp_path / "pictures" / "3.png").write_text("no image")
    (tmp_path / "job.toml").write_text(
        f'output = "out"\nmodel = "{tiny_bundle_int4.folder}"\n[input]\ninputs = ["pictures"]\n[generation]\n'
        f'max_new_tokens = 5\n[generation.prompt]\nshort = "{SHORT}"\nlong = "{LONG}"\n[vision]\nbackend = "onnx"\n'
    )
    done = batchcap("run", tmp_path / "job.toml", "--show", 9)
    assert done.returncode == 0, done.stderr
    assert "asking 2 prompts of each image: short, long" in done.stderr
    *table, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in table[::2]] == [
        ["1.png", "short:"],
        ["2.png", "short:"],
        ["3.png", "[failed:"],
    ]
    assert [line.split()[0] for line in table[1::2]] == ["long:", "long:"]
    assert last.startswith("2 x 2 captions, 1 failed (this run: 2 images in ")

    content = json.loads(batchcap("status", tmp_path / "out", "--json").stdout)
    assert (content["rows"], content["ok"], content["failed"]) == (3, 2, 1)
    assert sum(content["verdicts"].values()) == 4, "captions are judged one by one"
    shown = batchcap("status", tmp_path / "out", "--captions", 1).stdout.splitlines()[-2:]
    assert shown == table[:2]

    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").metadata
    assert json.loads(metadata[b"batchcap.prompts"]) == ["short", "long"]
    assert dict(json.loads(metadata[b"batchcap.settings"])["prompt"]) == {"short": SHORT, "long": LONG}
    rows = read_rows(tmp_path / "out")
    tokens = sum(row[f"new_tokens_{name}"] or 0 for row in rows for name in ("short", "long"))  # type: ignore[misc]
    assert read_summary(tmp_path / "out")["new_tokens"] == tokens


def test_carried_columns_keep_out_of_the_way(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    table = pa.table(
        {
            "image": [image(1)],
            "caption": ["by hand"],
            "caption_short": ["by hand, short"],
            "caption_other": ["by another"],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    command = ("caption", tmp_path / "in.parquet", "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 3)
    kept = (*command, "--keep-columns", "*", "-o")
    done = batchcap(*kept, tmp_path / "a", "--prompt", f"short={SHORT}")
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "a")
    assert "caption" not in row, "it would be taken for ours"
    assert (row["input_caption"], row["input_caption_short"]) == ("by hand", "by hand, short")
    assert row["caption_other"] == "by another"
    assert row["caption_short"] not in (None, "by hand, short")
    # A prompt without a name takes the plain names only, as ever.
    assert batchcap(*kept, tmp_path / "b").returncode == 0
    (row,) = read_rows(tmp_path / "b")
    assert (row["input_caption"], row["caption_short"]) == ("by hand", "by hand, short")

    pq.write_table(table.append_column("input_caption_short", pa.array(["x"])), tmp_path / "in.parquet")
    refused = batchcap(*kept, tmp_path / "c", "--prompt", f"short={SHORT}")
    assert_refused(refused, "'caption_short'", "'input_caption_short'", "--keep-columns")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["Describe it."], "Describe it."),
        (["What is a=b?"], "What is a=b?"),
        (["=x"], "=x"),
        (["a+b=c?"], "a+b=c?"),
        (["Is it 1=x?"], "Is it 1=x?"),
        (["x=3?"], {"x": "3?"}),
        (["_1=a=b\nc", "B=="], {"_1": "a=b\nc", "B": "="}),
    ],
)
def test_what_is_a_name(given: list[str], expected: str | dict[str, str]) -> None:
    assert read_prompt_options(given, Path(), BegunJob(None)) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=x", "Describe it."], "--prompt 'Describe it.' has no name; with several prompts each needs a name"),
        (["x", "y"], "'x' has no name; with several prompts each needs a name: write --prompt NAME=TEXT"),
        (["a=x", "a=y"], "--prompt has two prompts called a"),
        *(
            ([f"{name}=x"], f"--prompt must not be called '{name}': a name has")
            for name in ("1", "my-name", "ä", "a.b")
        ),
        (["B="], "--prompt B: must not be empty"),
    ],
)
def test_names_that_are_missing_or_double(given: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_prompt_options(given, Path(), BegunJob(None))


def test_mistaken_prompts_are_refused(tmp_path: Path) -> None:
    command = ("caption", tmp_path, "-o", tmp_path / "out", "--prompt", "a=x", "--prompt")
    assert_refused(batchcap(*command, "What is it?"), "'What is it?' has no name", "NAME=TEXT")
    assert_refused(batchcap(*command, "A=y"), "has several prompts called a and A", "another name")


def test_a_job_goes_on_with_what_a_new_one_may_not_have(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    """Job folders of earlier versions may have any prompt and any temperature, and are resumed with them."""
    write_images(tmp_path / "pictures", 2)
    text = "1={title}"
    command = (
        "caption",
        tmp_path / "pictures",
        "-m",
        tiny_bundle_int4.folder,
        *ONNX,
        "--max-new-tokens",
        3,
        "-o",
        tmp_path / "out",
    )
    begun = batchcap(*command, "--limit", 1, "--prompt", "Describe it.", "--temperature", 1)
    assert begun.returncode == 0, begun.stderr
    asked = ("--prompt", text, "--temperature", 9)
    assert_refused(batchcap(*command, *asked), "--prompt must not be called '1'")
    path = JobFolder(tmp_path / "out").job_path
    content = json.loads(path.read_text())
    content["fingerprint"] |= {"prompt": text, "temperature": 9.0}
    path.write_text(json.dumps(content))

    job = tmp_path / "job.toml"
    job.write_text(
        f'output = "out"\nmodel = "{tiny_bundle_int4.folder}"\n[input]\ninputs = ["pictures"]\n'
        f'[generation]\nmax_new_tokens = 3\nprompt = "{text}"\ntemperature = 9\n[vision]\nbackend = "onnx"\n'
    )
    done = batchcap(*command, *asked)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "out")) == 3
    again = batchcap("run", job)
    assert (again.returncode, again.stderr) == (0, "")
    job.write_text(job.read_text().replace('"out"', '"new"'))
    assert_refused(
        batchcap("run", job), "2 mistakes", "[generation] prompt: has {title}", "temperature: must be at most 2"
    )


def test_a_prompt_from_a_file(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    write_images(tmp_path / "pictures", 1)
    (tmp_path / "asked.txt").write_text("What is it?\n")
    command = (
        "caption",
        tmp_path / "pictures",
        "-m",
        tiny_bundle_int4.folder,
        *ONNX,
        "--max-new-tokens",
        3,
        "-o",
        tmp_path / "out",
    )
    assert batchcap(*command, "--prompt", f"a=@{tmp_path / 'asked.txt'}").returncode == 0
    again = batchcap(*command, "--prompt", "a=What is it?")
    assert (again.returncode, again.stderr) == (0, "")
    job = tmp_path / "job.toml"
    job.write_text(
        f'output = "out"\nmodel = "{tiny_bundle_int4.folder}"\n[input]\ninputs = ["pictures"]\n'
        '[generation]\nmax_new_tokens = 3\n[generation.prompt]\na = "@asked.txt"\n[vision]\nbackend = "onnx"\n'
    )
    again = batchcap("run", job)
    assert (again.returncode, again.stderr) == (0, "")
    (tmp_path / "asked.txt").unlink()
    assert_refused(batchcap("run", job), "[generation] prompt: a: names the file", "which does not exist")


def write_doubles(folder: Path, images: int) -> Path:
    """A manifest of images of which each is there three times: twice side by side, and in parts far apart."""
    numbers = [number for number in range(images) for _twice in range(2)] + list(range(images))
    for place, number in enumerate(numbers):
        (folder / f"{place:03d}").write_bytes(image(number))
    table = pa.table({"image": [f"{place:03d}" for place in range(len(numbers))], "number": numbers})
    pq.write_table(table, folder / "in.parquet", row_group_size=13)
    return folder / "in.parquet"


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_doubles(tmp_path_factory.mktemp("doubles"), images=30)


def caption_doubles(job: Job, doubles: Path, output: Path, *options: str, images: int = 30) -> list[dict[str, Any]]:
    run("caption", str(doubles), "-o", str(output), "-m", job.model, "--keep-columns", "number",
        "--max-new-tokens", "24", "--rows-per-part", "10", *ONNX, *options)  # fmt: skip
    rows: list[dict[str, Any]] = read_rows(output)
    assert [row["row"] for row in rows] == list(range(3 * images))
    return rows


WORDS = ("caption", "status", "verdict", "new_tokens", "error_kind", "image_sha256", "width", "visual_tokens")


def test_equal_images_are_captioned_once(job: Job, doubles: Path, tmp_path: Path) -> None:
    rows = caption_doubles(job, doubles, tmp_path / "out", "--slots", "4")
    summary = read_summary(tmp_path / "out")
    assert summary["run"]["twins"] == 60
    captions = Counter[str]()
    for number in range(30):
        equal = [row for row in rows if row["number"] == number]
        assert len(equal) == 3
        assert len({tuple(row[name] for name in WORDS) for row in equal}) == 1
        computed = [row for row in equal if row["vision_ms"] is not None]
        assert len(computed) == (1 if equal[0]["status"] == "ok" else 0)
        captions[str(equal[0]["caption"])] += 1
    assert len(captions) > 15, "the images must matter"
    assert summary["new_tokens"] == sum(row["new_tokens"] or 0 for row in rows)
    assert summary["run"]["new_tokens"] == summary["new_tokens"] / 3


def test_equal_images_end_alike_whatever_interrupts(job: Job, tmp_path: Path) -> None:
    images = 150  # so many that a fast machine is not through with them at the second flush
    doubles, output = write_doubles(tmp_path, images), tmp_path / "out"
    expected = caption_doubles(job, doubles, tmp_path / "whole", images=images)
    arguments = ("caption", str(doubles), "-o", str(output), "-m", job.model, "--keep-columns", "number",
                 "--max-new-tokens", "24", "--rows-per-part", "10", *ONNX, "--slots", "1")  # fmt: skip
    process = Process(*arguments, warm=True)
    assert process.wait_until(lambda: len(JobFolder(output).part_paths()) >= 2)
    process.signal_group(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.wait_for_group()
    durable = durable_rows(output)[0]
    found = caption_doubles(job, doubles, output, "--slots", "3", images=images)
    computed = {row["number"] for row in found if row["vision_ms"] is not None}
    assert sum(row["vision_ms"] is not None for row in found) == len(computed), "nothing was captioned a second time"
    assert 20 <= durable < 3 * images
    assert [[row[name] for name in WORDS] for row in found] == [[row[name] for name in WORDS] for row in expected]


def test_draws_of_equal_images_differ(job: Job, doubles: Path, tmp_path: Path) -> None:
    rows = caption_doubles(job, doubles, tmp_path / "out", "--temperature", "1")
    assert read_summary(tmp_path / "out")["run"]["twins"] == 0
    assert all(row["vision_ms"] is not None for row in rows if row["status"] == "ok")
    same = [len({row["caption"] for row in rows if row["number"] == number}) == 1 for number in range(30)]
    assert sum(same) < 5


def test_several_prompts_of_equal_images(job: Job, doubles: Path, tmp_path: Path) -> None:
    rows = caption_doubles(job, doubles, tmp_path / "out", *ASKED)
    assert read_summary(tmp_path / "out")["run"]["twins"] == 60
    for number in range(30):
        equal = [tuple(row[f"{name}_{of}"] for name in OWN for of in NAMES) for row in rows if row["number"] == number]
        assert len(set(equal)) == 1
