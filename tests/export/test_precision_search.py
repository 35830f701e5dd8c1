"""The decoder that --auto makes: the first of the ladder within the bound, told in the bundle, or none."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from batchcap.cli import app
from batchcap.core.errors import UsageError
from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.checkpoint.scaling import SCALES_FILE
from batchcap.export.export import export_bundle
from batchcap.export.quality.images import ImageChoice
from batchcap.export.search import precision_search
from batchcap.export.search.precision_search import Search, ladder
from batchcap.model.bundle import BUNDLE_FILE, Bundle
from tests.checkpoints import Shape, make_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("threads_put_back")]

SHAPE = Shape(layers=2, levels=(0,), vision_depth=1)
OPTIONS = ExportOptions(context=256)
CHOICE = ImageChoice(count=2, max_visual_tokens=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("auto") / "small", SHAPE)


def searched(checkpoint: Path, output: Path, max_divergence: float) -> tuple[Bundle, list[str]]:
    shown: list[str] = []
    search = Search(CHOICE, max_divergence, shown.append)
    return export_bundle(str(checkpoint), output, OPTIONS, search=search), shown


def precision(bundle: Bundle) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle.folder / BUNDLE_FILE).read_text())
    return content["precision"]  # type: ignore[no-any-return]


def test_a_wide_bound_takes_the_fastest(checkpoint: Path, tmp_path: Path) -> None:
    bundle, shown = searched(checkpoint, tmp_path / "b", 1000.0)
    first = ladder(OPTIONS.context)[0]
    assert bundle.precision == first.name
    plain = export_bundle(str(checkpoint), tmp_path / "plain", first.options)
    assert plain.decoder_path.with_name("model.onnx.data").read_bytes() == (
        bundle.decoder_path.with_name("model.onnx.data").read_bytes()
    )
    assert first.name in shown[0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_first_within_the_bound_is_taken(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no decoder of 4 or 8 bits stays within .* raise --max-kl"):
        searched(checkpoint, tmp_path / "none", 1e-12)
    assert list(tmp_path.iterdir()) == []
    # Bits of the first ones are far above what eight bits reach.
    steps = [one for one in ladder(OPTIONS.context) if not one.scaled or one.options.precision is Precision.INT8]
    monkeypatch.setattr(precision_search, "ladder", lambda _context: steps)
    bundle, shown = searched(checkpoint, tmp_path / "b", 0.01)
    tried = precision(bundle)["auto"]["tried"]
    assert [one["decoder"] for one in tried] == [one.name for one in steps[: len(tried)]]
    assert [one["divergence"] <= 0.01 for one in tried] == [False] * (len(tried) - 1) + [True]
    assert bundle.precision == tried[-1]["decoder"]
    assert len(tried) > 1
    assert all(one["decoder"] in shown[0] for one in tried)
    again, _shown = searched(checkpoint, tmp_path / "again", 0.01)
    assert (again.folder / BUNDLE_FILE).read_bytes() == (bundle.folder / BUNDLE_FILE).read_bytes()


def test_scales_of_the_chosen_one_are_kept(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = [one for one in ladder(OPTIONS.context) if one.scaled][:1]
    monkeypatch.setattr(precision_search, "ladder", lambda _context: scaled)
    bundle, _shown = searched(checkpoint, tmp_path / "b", 1000.0)
    assert (bundle.folder / SCALES_FILE).exists()
    assert precision(bundle)["awq"]["pictures"] == 4  # fewer than `MIN_TO_SHARE_OUT`: all of them
    assert bundle.precision.endswith(", awq")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--auto --block-size 64", "--auto chooses what --block-size says: leave one of them out"),
        ("--auto --precision int8", "--auto chooses what --precision says"),
        ("--auto --max-kl nan", "--max-kl must be a number of nats above 0, not nan"),
        ("--auto --max-kl 0", "--max-kl must be a number of nats above 0, not 0"),
        ("--auto --calibrate /nowhere/at/all", "/nowhere/at/all does not exist"),
        ("--calibrate /nowhere/at/all", "/nowhere/at/all does not exist"),
        ("--max-kl 0.1", "only --auto keeps to --max-kl, and it is not given: give both, or leave it out"),
        ("--prompt Why?", "--prompt is asked about the images of --calibrate or --auto, and neither is given"),
        ("--precision w8a8 --block-size 64", "w8a8 has one scale for each output, so --block-size says nothing"),
        ("--precision fp32 --algorithm rtn", "fp32 rounds nothing, so --algorithm says nothing: leave one"),
        ("--precision int8 --int8-matrices head", "int8 gives every matrix 8 bits, so --int8-matrices says nothing"),
    ],
)
def test_options_that_do_not_go_together(options: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), *options.split()])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []
