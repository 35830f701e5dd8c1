"""The pictures an export looks at: spread over the inputs, of every kind, or batchcap's own."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from batchcap.core.errors import UsageError
from batchcap.export.quality.pictures import PictureChoice, fitted, load_pictures, pictures_sha256, require_inputs
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate

SAMPLE = Path(__file__).parents[2] / "sample_data"


def shas(choice: PictureChoice, bundle: Bundle, exclude: Path) -> list[str]:
    return [picture.sha256 for picture in load_pictures(choice, bundle.geometry, exclude)]


def test_pictures_are_spread_over_files_and_parquet_rows(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    inputs = (str(SAMPLE / "sizes"), str(SAMPLE / "manifest.parquet"))
    everything = shas(PictureChoice(inputs, count=1000), tiny_bundle_fp32, tmp_path)
    assert len(everything) == len(list((SAMPLE / "sizes").iterdir())) + 16
    few = shas(PictureChoice(inputs, count=5), tiny_bundle_fp32, tmp_path)
    assert few == [everything[number * len(everything) // 5] for number in range(5)]


def test_what_cannot_be_read_is_left_out(
    tiny_bundle_fp32: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copyfile(SAMPLE / "sizes" / "96x96.jpg", tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_text("no picture")
    choice = PictureChoice((str(tmp_path),))
    assert len(shas(choice, tiny_bundle_fp32, tmp_path / "out")) == 1
    assert "bad.jpg is left out" in caplog.text
    (tmp_path / "good.jpg").unlink()
    with pytest.raises(UsageError, match=r"no picture in .* can be read: name others"):
        load_pictures(choice, tiny_bundle_fp32.geometry, tmp_path / "out")


def test_inputs_are_looked_for_before_the_work(tmp_path: Path) -> None:
    require_inputs(PictureChoice())
    require_inputs(PictureChoice((str(SAMPLE / "sizes"), str(SAMPLE / "manifest.parquet"))))
    for inputs in ((str(tmp_path),), (str(SAMPLE / "sizes"), str(tmp_path / "nothing")), ("",)):
        with pytest.raises(UsageError):
            require_inputs(PictureChoice(inputs))


@pytest.mark.parametrize("count", [0, -1])
def test_some_pictures_must_be_taken(count: int) -> None:
    with pytest.raises(UsageError, match=f"--limit must be at least 1, not {count}"):
        PictureChoice(count=count)


def test_own_pictures_are_the_same_each_time(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    first, second = (load_pictures(PictureChoice(count=8), tiny_bundle_fp32.geometry, tmp_path) for _time in range(2))
    assert len({picture.sha256 for picture in first}) == 8
    assert pictures_sha256(PictureChoice(), first) == pictures_sha256(PictureChoice(), second)
    assert pictures_sha256(PictureChoice(), first) != pictures_sha256(PictureChoice(prompt="What is it?"), first)
    assert pictures_sha256(PictureChoice(), first) != pictures_sha256(PictureChoice(), first[:-1])


def test_the_budget_of_visual_tokens_holds(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    pictures = load_pictures(PictureChoice(count=6, max_visual_tokens=16), tiny_bundle_fp32.geometry, tmp_path)
    assert all(len(picture.values) <= 16 * tiny_bundle_fp32.geometry.vision.merge_size**2 for picture in pictures)


def test_a_small_context_leaves_less_room(tiny_bundle_fp32: Bundle) -> None:
    prompt = PromptTemplate.from_bundle(tiny_bundle_fp32, PictureChoice().prompt)
    small = dataclasses.replace(tiny_bundle_fp32, context=100)
    assert fitted(PictureChoice(), small, 30).max_visual_tokens == 70 - prompt.text_tokens
    assert fitted(PictureChoice(), tiny_bundle_fp32, 30) == PictureChoice()
    with pytest.raises(UsageError, match=r"a context of 100 tokens has no room for a picture and 90 new tokens"):
        fitted(PictureChoice(), small, 90)
