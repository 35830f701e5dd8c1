"""`RUN.md`: what it says of a job, at every end, and that nothing of others in it is mark-up."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.core.errors import ErrorKind, ExitCode, NotSameJobError, StorageError, UsageError, WorkerError
from batchcap.core.records import Failure, Outcome, Request
from batchcap.core.text import markdown_code
from batchcap.job.stop import StopRequest
from batchcap.store.folder import JobFolder
from tests.fake_engine import FakeEngine, outcome_of
from tests.job.small import ROWS, run_small, small_job

markdown_it = pytest.importorskip("markdown_it")

HOSTILE = (
    "<script>alert(1)</script>",
    "![x](https://tracker.example/x.png)",
    "`` `a` ``` b",
    "`",
    " ",
    "a `",
    "| a | b |\n|---|---|",
    "# not a heading\n\n- not a list\r\u2028x",
    "\\`\\",
    "https://example.com @somebody &lt; **x** ~~y~~",
    "\x1b[31mred\u202egnp",
)


def page_of(config: Any) -> str:
    return JobFolder(Path(config.output)).run_card_path.read_text(encoding="utf-8")


def tokens(text: str) -> list[Any]:
    """What a reader of GitHub's Markdown makes of a text, in one list."""
    reader = markdown_it.MarkdownIt("gfm-like", {"linkify": False, "html": True})
    return [inner for token in reader.parse(text) for inner in (token, *(token.children or ()))]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_of_others_is_code_and_nothing_else(text: str) -> None:
    found = tokens(f"- Name: {markdown_code(text)}, done\n- next")
    kinds = [token.type for token in found if token.type not in ("inline", "text")]
    code = ["code_inline"] if text.strip() else []
    item = ["list_item_open", "paragraph_open", *code, "paragraph_close", "list_item_close"]
    assert kinds == ["bullet_list_open", *item, *(kind for kind in item if kind != "code_inline"), "bullet_list_close"]
    for token in found:
        if token.type == "code_inline":
            assert (
                token.content.strip()
                == re.sub(r"[\n\r\u2028\x1b\u202e]", lambda odd: f"\\u{ord(odd[0]):04x}", text).strip()
            )


def test_a_long_text_is_cut() -> None:
    assert markdown_code("x" * 1000) == f"`{'x' * 300}…`"


def test_it_says_how_the_job_stands(tmp_path: Path) -> None:
    config = small_job(tmp_path)
    run_small(config)
    page = page_of(config)
    for line in (
        "# Captions in `out`",
        "- State: **complete**, exit code 0",
        f"- Rows of the job: {ROWS}",
        f"- Done: {ROWS}, left: 0",
        "- Failed: 3 (13.04% of those done)",
        "- Verdicts of the captions: ok 20",
        "- **corrupt**: 3, such as `bad-12`: `cut`",
        "- Model: `fake`",
        "- Model's precision: `int4`",
        "- Prompt: `Describe this image in one sentence.`",
        "- max_new_tokens: `128`",
        "- rows_per_part: `5`",
    ):
        assert f"{line}\n" in page or line in page.replace("bad-2`", "bad-12`").replace("bad-22`", "bad-12`"), line
    assert "--retry failed" in page
    assert "on_end" not in page, "a command may hold a password"
    assert not re.search(r"\n\n\n|[ \t]\n", page)


def test_it_is_written_at_every_end(tmp_path: Path) -> None:
    config, stop = small_job(tmp_path), StopRequest()
    run_small(config, look=lambda _done: stop.ask(ExitCode.STOPPED_EARLY), stop=stop)
    assert "- State: **stopped**, exit code 75" in page_of(config)
    assert "Run the same command, or the same job file, again" in page_of(config)
    with pytest.raises(WorkerError):
        run_small(config, FakeEngine(dies_after=3))
    assert "- State: **failed**, exit code 1" in page_of(config)
    assert "- Last success at: none yet" in page_of(config)
    run_small(config)
    success = re.search(r"- Last success at: (\S+)", page_of(config))
    assert success
    complete = page_of(config)
    with pytest.raises(NotSameJobError):
        run_small(replace(config, generation=replace(config.generation, prompt="another")))
    assert page_of(config) == complete, "the folder is another job's"
    (tmp_path / "in.parquet").unlink()
    with pytest.raises(UsageError):
        run_small(config)
    assert "- State: **failed**, exit code 2" in page_of(config)
    assert f"- Last success at: {success[1]}" in page_of(config)
    assert "before its rows were counted" in page_of(config)


def test_failures_of_earlier_runs_have_a_sample_too(tmp_path: Path) -> None:
    config = small_job(tmp_path)
    run_small(config)
    before = page_of(config)
    run_small(config)
    found = re.search(r"- \*\*corrupt\*\*: 3, such as `(bad-\d+)`: `cut`", page_of(config))
    assert found
    assert "## Speed of this run" in before
    assert "## Speed of this run" not in page_of(config)


def test_a_page_of_hostile_names_has_no_mark_up_of_theirs(tmp_path: Path) -> None:
    config = small_job(tmp_path, output="a`b<i>|c")
    ids = list(dict.fromkeys(text for text in HOSTILE if text.strip()))
    pq.write_table(pa.table({"path": ["x.png"] * len(ids), "key": ids}), tmp_path / "in.parquet")
    kinds = list(ErrorKind)

    def answer(request: Request) -> Outcome:
        if not request.index:
            return outcome_of(request.row)
        kind = kinds[request.index % len(kinds)]
        kind = ErrorKind.CORRUPT if kind is ErrorKind.NETWORK else kind
        return Outcome(request, Failure(request.index, kind, request.row.id))

    config = replace(config, generation=replace(config.generation, prompt="<b>\n# x"), model="`<b>")
    run_small(config, FakeEngine(end=answer))
    kinds_found = {token.type for token in tokens(page_of(config))}
    assert not {kind for kind in kinds_found if re.search(r"html|image|link|table|fence|^em_|^hr$|code_block", kind)}
    assert sum(token.type == "heading_open" for token in tokens(page_of(config))) == 7


def test_a_page_that_can_not_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("batchcap.job.run_card.write_atomic", full)
    assert run_small(small_job(tmp_path)).exit_code is ExitCode.COMPLETE
    assert "the run card is not written" in caplog.text
