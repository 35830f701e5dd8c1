"""The stored settings of a job: some came later, some are of a later batchcap, and while nothing is captioned."""

import json
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from batchcap.config import GenerationConfig, InputConfig, JobConfig, ResumeConfig
from batchcap.core.errors import ErrorKind, NotSameJobError, UsageError
from batchcap.core.records import CaptionRow, Shard, Status
from batchcap.core.setting import NEEDED, all_values, setting
from batchcap.store.fingerprint import check_same_job, fingerprint_of
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import TALLY_KEY, write_part
from tests.store.records import caption_row

CONFIG = JobConfig(InputConfig(("images",)), "out")
FINGERPRINT = fingerprint_of(CONFIG, "m", ("torch", "bf16"))
FAILED = CaptionRow("a", "/a", 0, status=Status.FAILED, error_kind=ErrorKind.MISSING, error_message="gone")
# Each setting of the fingerprint: whether a retry may have another value than the job.
MAY_DIFFER_IN_A_RETRY = {
    "model": False,
    "prompt": False,
    "max-new-tokens": True,
    "temperature": True,
    "top-p": True,
    "top-k": True,
    "repetition-penalty": True,
    "seed": True,
    "loop-stop": True,
    "max-visual-tokens": False,
    "vision-backend": False,
    "vision-dtype": False,
    "max-image-pixels": True,
    "image-column": False,
    "id-column": False,
    "image-root": False,
    "keep-columns": False,
    "images": False,
    "where": False,
    "sample": False,
    "sample-seed": False,
    "shard": False,
}
OLD_JOBS = sorted((Path(__file__).parents[1] / "data").glob("format-*/jobs/*/*/job.json"))


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """A job that has begun."""
    folder = JobFolder.open_or_create(tmp_path / "out")
    check_same_job(folder, FINGERPRINT, CONFIG)
    return folder


def finish(folder: JobFolder, row: CaptionRow, *, in_part: bool) -> None:
    with closing(Journal.open(folder.journal_path)) as journal:
        journal.add([(0, row)])
    if in_part:
        counts = json.dumps({"ok": int(row.status is Status.OK)})
        write_part(folder.part_path(0), Shard(0, 0, 1), [row], None, {TALLY_KEY: counts})


def stored(folder: JobFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(folder.job_path.read_text())["fingerprint"]
    return content


def test_every_setting_of_today_has_a_value_for_every_old_job() -> None:
    assert OLD_JOBS
    for path in OLD_JOBS:
        known = json.loads(path.read_text())["fingerprint"].keys()
        came_later = {one.key.replace("_", "-") for one, _value in all_values(CONFIG) if one.value_before is not NEEDED}
        assert FINGERPRINT.keys() - known == came_later - known, path
        assert not known - FINGERPRINT.keys(), path


@dataclass(frozen=True, slots=True)
class TomorrowsGeneration(GenerationConfig):
    """With settings that came later."""

    language: str | None = setting("en", "Language.", decides_caption=True, value_before=None)
    mood: str = setting("merry", "Mood.", decides_caption=True, free_in_retry=True, value_before="merry")


@dataclass(frozen=True, slots=True)
class TomorrowsJob(JobConfig):
    """A job of a later batchcap."""

    generation: TomorrowsGeneration = field(default_factory=TomorrowsGeneration)


def test_a_setting_that_came_later_ends_no_old_job(folder: JobFolder) -> None:
    finish(folder, caption_row(0), in_part=False)

    def check(*, retry: tuple[str, ...] = (), **given: Any) -> tuple[str, ...]:
        config = TomorrowsJob(CONFIG.input, "out", generation=TomorrowsGeneration(**given), resume=ResumeConfig(retry))
        return check_same_job(folder, fingerprint_of(config, "m", ("torch", "bf16")), config)

    assert check(language=None) == ()
    with pytest.raises(NotSameJobError, match='--language: was null, now "en"'):
        check()  # what is a default now was none then
    with pytest.raises(NotSameJobError, match='--mood: was "merry", now "sad"'):
        check(language=None, mood="sad")
    assert check(language=None, mood="sad", retry=("failed",)) == ("mood",)
    with pytest.raises(NotSameJobError, match='--language: was null, now "fr"'):
        check(language="fr", retry=("failed",))


def test_settings_stand_in_a_job_folder_in_the_order_of_ever_and_later_ones_behind_them() -> None:
    assert list(FINGERPRINT) == list(MAY_DIFFER_IN_A_RETRY)
    later = fingerprint_of(TomorrowsJob(CONFIG.input, "out"), "m", ("torch", "bf16"))
    assert list(later.items()) == [*FINGERPRINT.items(), ("language", "en"), ("mood", "merry")]


def test_a_setting_that_only_a_later_batchcap_knows_is_refused(folder: JobFolder) -> None:
    content = json.loads(folder.job_path.read_text())
    content["fingerprint"]["language"] = "fr"
    folder.job_path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"begun by a later batchcap.*\(language\): use the batchcap that made it"):
        check_same_job(folder, FINGERPRINT, CONFIG)


def test_a_setting_that_is_gone_is_damage(folder: JobFolder) -> None:
    content = json.loads(folder.job_path.read_text())
    del content["fingerprint"]["seed"]
    folder.job_path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="lacks seed"):
        check_same_job(folder, FINGERPRINT, CONFIG)


@pytest.mark.parametrize("in_part", [False, True])
def test_a_job_that_has_captioned_nothing_starts_over_with_other_settings(folder: JobFolder, *, in_part: bool) -> None:
    finish(folder, FAILED, in_part=in_part)
    assert check_same_job(folder, FINGERPRINT, CONFIG) == ()
    assert folder.journal_path.exists(), "with the same settings its failures stay"
    other = replace(CONFIG, input=replace(CONFIG.input, image_root="/images"))
    assert check_same_job(folder, fingerprint_of(other, "m", ("torch", "bf16")), other) == ()
    assert not folder.part_paths()
    assert not folder.journal_path.exists()
    assert stored(folder)["image-root"] == "/images"


def test_a_plan_goes_with_the_settings_it_was_made_with(folder: JobFolder) -> None:
    """It has the rows of another shard, or of another condition, though none of them has ended."""
    with closing(Journal.open(folder.journal_path)) as journal, journal.transaction() as connection:
        connection.execute("INSERT INTO shards VALUES (0, 0, 5)")
    other = replace(CONFIG, input=replace(CONFIG.input, shard="2/2"))
    assert check_same_job(folder, fingerprint_of(other, "m", ("torch", "bf16")), other) == ()
    assert not folder.journal_path.exists()


@pytest.mark.parametrize("in_part", [False, True])
def test_one_caption_binds_the_job(folder: JobFolder, *, in_part: bool) -> None:
    finish(folder, caption_row(0), in_part=in_part)
    with pytest.raises(NotSameJobError, match="--prompt"):
        check_same_job(folder, {**FINGERPRINT, "prompt": "x"}, CONFIG)
    assert folder.part_paths() == ([folder.part_path(0)] if in_part else [])


def test_a_part_that_cannot_be_read_may_hold_captions(folder: JobFolder) -> None:
    finish(folder, FAILED, in_part=True)
    folder.part_path(0).write_bytes(b"damaged")
    with pytest.raises(NotSameJobError, match="--seed"):
        check_same_job(folder, {**FINGERPRINT, "seed": 1}, CONFIG)
    assert folder.part_path(0).exists()


def test_of_every_setting_it_is_known_whether_a_retry_may_change_it() -> None:
    assert MAY_DIFFER_IN_A_RETRY.keys() == FINGERPRINT.keys()


@pytest.mark.parametrize("name", MAY_DIFFER_IN_A_RETRY)
def test_a_setting_stops_a_resume_and_a_retry_where_it_may_not_change(folder: JobFolder, name: str) -> None:
    finish(folder, caption_row(0), in_part=True)
    other = {**FINGERPRINT, name: "other"}
    with pytest.raises(NotSameJobError, match=f"--{name}: was .*, now "):
        check_same_job(folder, other, CONFIG)
    retry = replace(CONFIG, resume=ResumeConfig(("failed",)))
    assert check_same_job(folder, FINGERPRINT, retry) == ()
    if MAY_DIFFER_IN_A_RETRY[name]:
        assert check_same_job(folder, other, retry) == (name,)
    else:
        with pytest.raises(NotSameJobError, match=f"--{name}: was .*, now "):
            check_same_job(folder, other, retry)
    assert stored(folder) == FINGERPRINT, "the job's own settings stay"


def test_paths_that_are_no_text_are_told_apart(folder: JobFolder) -> None:
    one, other = (replace(CONFIG, input=InputConfig(("images",), image_root=f"/caf{end}")) for end in "\udce9\udce8")
    for _run in range(2):
        assert check_same_job(folder, fingerprint_of(one, "m", ("torch", "bf16")), one) == ()
        finish(folder, caption_row(0), in_part=False)
    with pytest.raises(NotSameJobError, match="--image-root"):
        check_same_job(folder, fingerprint_of(other, "m", ("torch", "bf16")), other)
