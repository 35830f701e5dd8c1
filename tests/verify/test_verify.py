"""`verify` passes good bundles of every kind, and names what is wrong with a broken one, whatever its precision."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from batchcap.cli import app
from batchcap.core.errors import ExitCode, UsageError
from batchcap.core.records import Patches
from batchcap.export.checkpoint.options import ExportOptions, Int8Matrices, Precision, RoundingAlgorithm
from batchcap.export.export import export_bundle
from batchcap.export.quality.images import ImageChoice
from batchcap.export.quality.reference import Reference
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from batchcap.verify import verify
from batchcap.verify.features import ENCODERS, EXACT, runs_here
from batchcap.verify.images import generated_rows
from batchcap.verify.options import VerifyOptions
from batchcap.verify.table import Report
from batchcap.verify.verify import verify_bundle
from tests.checkpoints import Shape, make_checkpoint
from tests.verify import faults
from tests.verify.faults import Fault, broken

STEPS = 4
MARGIN = 0.1  # good bundles stay below this part of a tolerance of structure
ODD_SHAPE = Shape(layers=3, hidden=160, intermediate=200, levels=(0, 2), tied=False)
ODD_EXPORTS = {
    "k_quant": (ExportOptions(block_size=128, algorithm=RoundingAlgorithm.K_QUANT, context=128), False),
    "default": (ExportOptions(Precision.INT8, 256, RoundingAlgorithm.DEFAULT, context=128), False),
    "mixed": (ExportOptions(block_size=64, int8_matrices=Int8Matrices.SENSITIVE, context=128), False),
    "scaled": (ExportOptions(block_size=32, context=128), True),
    "integers, scaled": (ExportOptions(Precision.W8A8, context=128), True),
}
SCALES, WEIGHTS, PLAIN = "decoder, scales of blocks", "decoder, rounded weights", "decoder, float32 weights"
TEXT, MROPE = "structure, text alone", "structure, mRoPE positions"
LEVELS = [f"structure, DeepStack level {level}" for level in range(3)]
SECTIONS, UNMATCHED = "decoder, mRoPE sections that differ", "decoder, tensors without match"
AFTER = "structure, steps after an image"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than high, so that rows and columns are not mistaken for each other."""
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 160, 3), np.uint8)).save(path)
    return path


def with_few_steps(folder: Path, checkpoint: str, options: VerifyOptions) -> Report:
    return verify_bundle(folder, checkpoint, replace(options, steps=STEPS))


class RememberedReference(Reference):
    """A reference that was asked before: the checkpoint's own answers do not depend on a bundle."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self._checkpoint = checkpoint

    def features(self, image: Patches) -> Any:
        return self._remembered(image.sha256, super().features, image)

    def greedy(self, image: Patches, prompt: PromptTemplate, steps: int) -> Any:
        return self._remembered((image.sha256, prompt, steps), super().greedy, image, prompt, steps)

    def _remembered(self, question: object, ask: Callable[..., Any], *arguments: Any) -> Any:
        key = (self._checkpoint, question)
        if key not in ANSWERS:
            ANSWERS[key] = ask(*arguments)
        return ANSWERS[key]


ANSWERS: dict[tuple[Path, object], Any] = {}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, one encoder, one reference: what these tests break lies elsewhere."""
    monkeypatch.setattr(verify, "verify_bundle", with_few_steps)
    monkeypatch.setattr(verify, "ENCODERS", (EXACT,))
    monkeypatch.setattr(verify, "Reference", RememberedReference)


def run(bundle: Path, checkpoint: Path, image: Path, *more: str) -> Result:
    arguments = ["verify", str(bundle), "--checkpoint", str(checkpoint), "--images", str(image), *more]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def failed_rows(result: Result) -> set[str]:
    """Names of the rows that the table calls failed."""
    lines = [line for line in result.stdout.splitlines() if "  FAIL" in line]
    return {line.split("  ")[0] for line in lines}


STRUCTURE: dict[str, tuple[Fault, set[str]]] = {
    "all DeepStack levels lost": (faults.all_levels_lost, set(LEVELS)),
    "one DeepStack level lost": (faults.level_lost(1), {LEVELS[1]}),
    "DeepStack levels swapped": (faults.levels_swapped, {LEVELS[0], LEVELS[1]}),
    "a DeepStack level added too late": (faults.level_late, {LEVELS[1]}),
    "mRoPE sections permuted": (faults.sections_permuted, {SECTIONS}),
    "mRoPE sections of one layer's keys permuted": (faults.sections_permuted_once, {SECTIONS}),
    "mRoPE sections not interleaved": (faults.sections_in_blocks, {SECTIONS, MROPE, AFTER}),
    "rows and columns of an image swapped": (faults.rows_are_columns, {MROPE, AFTER, UNMATCHED}),
    "attention sharper": (faults.attention_scaled, {TEXT, MROPE, *LEVELS, AFTER}),
    "matrices swapped": (faults.matrices_swapped, {TEXT, MROPE, *LEVELS, AFTER}),
    "norm off": (faults.norm_off, {PLAIN}),
    "rotary table off": (faults.rotary_off, {"decoder, rotary tables"}),
    "embedding off": (faults.embedding_off, {"token embeddings"}),
    "vision weight off": (faults.vision_off, {"vision weights that differ"}),
}
ROUNDED: dict[str, tuple[Fault, set[str]]] = {
    "one scale half as large again": (faults.scale_off(1.5), {SCALES, WEIGHTS}),
    "one scale off by a thousandth": (faults.scale_off(1.001), {SCALES}),
    "one scale of the other sign": (faults.scale_off(-1), {WEIGHTS}),
    "two levels off": (faults.level_off, {WEIGHTS}),
}
FP32: dict[str, tuple[Fault, set[str]]] = {
    "a weight off by a millionth": (faults.weight_off, {PLAIN}),
}
W8A8: dict[str, tuple[Fault, set[str]]] = {
    "one row's scale off by a thousandth": (faults.scale_off(1.001), {SCALES, WEIGHTS}),  # the largest is 127 steps
    "two levels off": ROUNDED["two levels off"],
}
BY_NAME = {**W8A8, **STRUCTURE, **ROUNDED, **FP32}
# All faults at 4 bits, where rounding could hide them; elsewhere those that touch other arithmetic.
CASES = [
    *(("int4", name) for name in {**STRUCTURE, **ROUNDED}),
    ("int8", "one scale off by a thousandth"),
    *(("w8a8", name) for name in W8A8),
    *(("w8a8", name) for name in STRUCTURE if name.startswith(("all", "DeepStack", "attention"))),
    *(("fp32", name) for name in FP32),
    *(("fp32", name) for name in STRUCTURE if name.startswith(("all", "DeepStack", "mRoPE"))),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, set[str]]:
    """A broken bundle, and the rows that must find it."""
    precision, name = request.param
    fault, rows = BY_NAME[name]
    bundle: Bundle = request.getfixturevalue(f"tiny_bundle_{precision}")
    return broken(bundle, tmp_path / "broken", fault), rows


@pytest.mark.usefixtures("few_steps")
def test_a_broken_bundle_is_found(
    case: tuple[Path, set[str]], image: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, rows = case
    monkeypatch.setattr(verify, "check_captions", lambda *_: ())
    result = run(bundle, tiny_checkpoint, image)
    assert result.exit_code == ExitCode.TOO_MANY_FAILURES
    # Rows about decoding may fail as well, and captions are not even written; those about weights and structure look
    # at one thing each.
    found = {row for row in failed_rows(result) if row.startswith(("decoder", "structure", "token", "vision"))}
    assert found == rows


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "w8a8"])
def test_a_good_bundle_passes_with_every_encoder(
    precision: str,
    image: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    bundle: Bundle = request.getfixturevalue(f"tiny_bundle_{precision}")
    monkeypatch.setattr(verify, "verify_bundle", with_few_steps)
    result = run(bundle.folder, tiny_checkpoint, image, "--json", str(tmp_path / "report.json"))
    assert result.exit_code == ExitCode.COMPLETE, result.stdout
    assert "checks passed" in result.stdout
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["passed"] is True
    assert content["bundle_id"] == bundle.id
    assert content["picture_names"] == ["noise.png"]
    measured = {row["check"]: row["measured"] / row["tolerance"] for row in content["rows"] if row["tolerance"]}
    for check in (TEXT, MROPE, *LEVELS, AFTER):
        assert measured[check] < MARGIN
    backends = {row["check"].split(",")[0] for row in content["rows"] if row["check"].startswith("vision ")}
    assert backends >= {f"vision {one.name}" for one in filter(runs_here, ENCODERS)}


def test_generated_images_of_many_sizes(tiny_checkpoint: Path, tiny_bundle_int4: Bundle) -> None:
    """The whole set once, with the decoder that batches differently from single rows if anything does."""
    report = verify_bundle(tiny_bundle_int4.folder, str(tiny_checkpoint), VerifyOptions(steps=STEPS))
    assert report.passed, report.to_text()
    assert report.facts["pictures"] == len(generated_rows()) > 10


def test_other_roundings_pass(tmp_path: Path, image: Path, few_steps: None) -> None:
    """No whole blocks, matrices of 8 bits among those of 4, scales by activation; exported from one drawing.

    The rotation is described as transformers reads it all the same.
    """
    checkpoint = make_checkpoint(tmp_path / "checkpoint", ODD_SHAPE)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["rope_parameters"]["mrope_interleaved"] = False
    (checkpoint / "config.json").write_text(json.dumps(config))
    for name, (options, calibrate) in ODD_EXPORTS.items():
        choice = ImageChoice((str(image),)) if calibrate else None
        bundle = export_bundle(str(checkpoint), tmp_path / name, options, calibrate=choice)
        result = run(bundle.folder, checkpoint, image)
        assert result.exit_code == ExitCode.COMPLETE, (name, result.stdout)
        assert ("decoder, scales that cancel out" in result.stdout) is calibrate


@pytest.mark.usefixtures("few_steps")
def test_another_checkpoint_is_refused(tiny_bundle_fp32: Bundle, tmp_path: Path, image: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=5)
    with pytest.raises(UsageError, match="checksums differ"):
        run(tiny_bundle_fp32.folder, other, image)
    wider = make_checkpoint(tmp_path / "wider", Shape(intermediate=320, layers=3))
    with pytest.raises(UsageError, match="text layers is 4 in the bundle and 3 in the checkpoint"):
        run(tiny_bundle_fp32.folder, wider, image)


@pytest.mark.parametrize("more", [(), ("--quality",)])
def test_a_place_for_the_json_is_looked_for_before_the_work(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "load", lambda *_: pytest.fail("this comes before the work"))
    for path in (tmp_path / "nowhere" / "v.json", tmp_path):
        arguments = ["verify", "bundle", "--checkpoint", "checkpoint", "--json", str(path), *more]
        with pytest.raises(UsageError, match=r"there can be no file .* name one in a folder that is there with --json"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.usefixtures("few_steps")
def test_images_that_cannot_be_read(
    tiny_bundle_fp32: Bundle, tiny_checkpoint: Path, image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="none of the images"):
        run(tiny_bundle_fp32.folder, tiny_checkpoint, tmp_path / "broken.png")
    with pytest.raises(UsageError, match="does not exist"):
        run(tiny_bundle_fp32.folder, tiny_checkpoint, tmp_path / "nothing")
    done = run(tiny_bundle_fp32.folder, tiny_checkpoint, image, "--images", str(tmp_path / "broken.png"))
    assert done.exit_code == ExitCode.COMPLETE
    assert "broken.png is skipped" in caplog.text
