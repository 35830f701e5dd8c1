"""The images an export looks at: spread over the inputs, of every kind, or batchcap's own."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from batchcap.core.errors import UsageError
from batchcap.export.quality.images import ImageChoice, fitted, images_sha256, load_images, require_inputs
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate

SAMPLE = Path(__file__).parents[2] / "sample_data"


def shas(choice: ImageChoice, bundle: Bundle, exclude: Path) -> list[str]:
    return [image.sha256 for image in load_images(choice, bundle.geometry, exclude)]


def test_images_are_spread_over_files_and_parquet_rows(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    inputs = (str(SAMPLE / "sizes"), str(SAMPLE / "manifest.parquet"))
    everything = shas(ImageChoice(inputs, count=1000), tiny_bundle_fp32, tmp_path)
    assert len(everything) == len(list((SAMPLE / "sizes").iterdir())) + 16
    few = shas(ImageChoice(inputs, count=5), tiny_bundle_fp32, tmp_path)
    assert few == [everything[number * len(everything) // 5] for number in range(5)]


def test_what_cannot_be_read_is_left_out(
    tiny_bundle_fp32: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copyfile(SAMPLE / "sizes" / "96x96.jpg", tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_text("no image")
    choice = ImageChoice((str(tmp_path),))
    assert len(shas(choice, tiny_bundle_fp32, tmp_path / "out")) == 1
    assert "bad.jpg is skipped" in caplog.text
    (tmp_path / "good.jpg").unlink()
    with pytest.raises(UsageError, match=r"no image in .* can be read: name others"):
        load_images(choice, tiny_bundle_fp32.geometry, tmp_path / "out")


def test_inputs_are_looked_for_before_the_work(tmp_path: Path) -> None:
    require_inputs(ImageChoice())
    require_inputs(ImageChoice((str(SAMPLE / "sizes"), str(SAMPLE / "manifest.parquet"))))
    for inputs in ((str(tmp_path),), (str(SAMPLE / "sizes"), str(tmp_path / "nothing")), ("",)):
        with pytest.raises(UsageError):
            require_inputs(ImageChoice(inputs))


@pytest.mark.parametrize("count", [0, -1])
def test_some_images_must_be_taken(count: int) -> None:
    with pytest.raises(UsageError, match=f"--limit must be at least 1, not {count}"):
        ImageChoice(count=count)


def test_own_images_are_the_same_each_time(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    first, second = (load_images(ImageChoice(count=8), tiny_bundle_fp32.geometry, tmp_path) for _time in range(2))
    assert len({image.sha256 for image in first}) == 8
    assert images_sha256(ImageChoice(), first) == images_sha256(ImageChoice(), second)
    assert images_sha256(ImageChoice(), first) != images_sha256(ImageChoice(prompt="What is it?"), first)
    assert images_sha256(ImageChoice(), first) != images_sha256(ImageChoice(), first[:-1])


def test_the_budget_of_visual_tokens_holds(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    images = load_images(ImageChoice(count=6, max_visual_tokens=16), tiny_bundle_fp32.geometry, tmp_path)
    assert all(len(image.values) <= 16 * tiny_bundle_fp32.geometry.vision.merge_size**2 for image in images)


def test_a_small_context_leaves_less_room(tiny_bundle_fp32: Bundle) -> None:
    prompt = PromptTemplate.from_bundle(tiny_bundle_fp32, ImageChoice().prompt)
    small = dataclasses.replace(tiny_bundle_fp32, context=100)
    assert fitted(ImageChoice(), small, 30).max_visual_tokens == 70 - prompt.text_tokens
    assert fitted(ImageChoice(), tiny_bundle_fp32, 30) == ImageChoice()
    with pytest.raises(UsageError, match=r"a context of 100 tokens has no room for an image and 90 new tokens"):
        fitted(ImageChoice(), small, 90)
