"""The measurement of rounding: nothing for the checkpoint itself, more for coarser decoders, as table and as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from batchcap.cli import app
from batchcap.core.errors import UsageError
from batchcap.export.quality.images import ImageChoice, load_images
from batchcap.export.quality.quality import QualityTable, ask_reference, compare_bundles, measure
from batchcap.export.quality.reference import Reference
from batchcap.export.quality.rollout import Rollout
from batchcap.model.bundle import Bundle
from tests.checkpoints import Shape, make_checkpoint

CHOICE = ImageChoice(count=5, max_visual_tokens=16)
STEPS = 6
EXACT_DIVERGENCE = 1e-8  # nats; float32 and a logit scale of about one


@pytest.fixture(scope="module")
def table(
    tiny_checkpoint: Path, tiny_bundle_fp32: Bundle, tiny_bundle_int8: Bundle, tiny_bundle_int4: Bundle
) -> QualityTable:
    folders = [one.folder for one in (tiny_bundle_fp32, tiny_bundle_int8, tiny_bundle_int4)]
    return compare_bundles(folders, str(tiny_checkpoint), CHOICE)


def test_the_checkpoint_itself_loses_nothing(table: QualityTable) -> None:
    exact = table.rows[0]
    assert 0 <= exact.divergence < EXACT_DIVERGENCE
    assert (exact.same_token, exact.same_captions) == (1.0, 1.0)
    assert exact.speed > 0


def test_coarser_decoders_lose_more(table: QualityTable) -> None:
    exact, eight, four = table.rows
    assert EXACT_DIVERGENCE < eight.divergence < four.divergence / 10
    assert exact.same_token >= eight.same_token > four.same_token
    assert four.same_captions < 1
    assert exact.decoder_bytes > eight.decoder_bytes > four.decoder_bytes


def test_the_table_is_printed_and_written(
    table: QualityTable, tiny_bundle_fp32: Bundle, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = table.to_text()
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["fp32:", "int8:", "int4:"]
    assert "5 images" in text
    content = json.loads(table.to_json())
    assert [one["decoder_bytes"] for one in content["decoders"]] == [row.decoder_bytes for row in table.rows]
    arguments = ["verify", str(tiny_bundle_fp32.folder), "--checkpoint", str(tiny_checkpoint), "--quality"]
    done = CliRunner().invoke(app, [*arguments, "--limit", "2", "--json", str(tmp_path / "q.json")])
    assert done.exit_code == 0, done.output
    assert "2 images" in done.output
    assert json.loads((tmp_path / "q.json").read_text())["pictures"] == 2


def test_the_measure_follows_its_definition(tiny_checkpoint: Path, tiny_bundle_int4: Bundle) -> None:
    """The same numbers from whole passes of the reference along its own answers, one prompt after the other."""
    images = load_images(CHOICE, tiny_bundle_int4.geometry, tiny_bundle_int4.folder)
    yardstick = ask_reference(tiny_bundle_int4, tiny_checkpoint, CHOICE, images, STEPS)
    stop = tiny_bundle_int4.geometry.tokens.stop
    reference = Reference(tiny_checkpoint)
    rollout = Rollout(tiny_bundle_int4.decoder_path, tiny_bundle_int4.geometry, tiny_bundle_int4.embeddings(), 1)
    found = list(rollout.forced(yardstick.prompts, yardstick.token_ids))
    divergences, agreed = [], []
    for prompt, token_ids, logits, mine in zip(
        yardstick.prompts, yardstick.token_ids, yardstick.logits, found, strict=True
    ):
        assert len(token_ids) == STEPS or token_ids[-1] in stop
        assert not set(token_ids[:-1]) & set(stop)
        whole = prompt.continued(token_ids[:-1], tiny_bundle_int4.embeddings())
        again = reference.language_model(whole.embeds, whole.deepstack, whole.positions, len(token_ids))
        np.testing.assert_allclose(logits, again, atol=1e-4)
        p, q = (np.exp(one.astype(np.float64)) for one in (again, mine))
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        divergences += (p * np.log(p / q)).sum(-1).tolist()
        agreed.append(again.argmax(-1) == mine.argmax(-1))
    quality = measure("int4", rollout, tiny_bundle_int4.decoder_path.parent, yardstick)
    assert quality.divergence == pytest.approx(np.mean(divergences), rel=1e-3)
    assert quality.same_token == pytest.approx(np.concatenate(agreed).mean())
    assert quality.same_captions == pytest.approx(np.mean([one.all() for one in agreed]))


def test_a_bundle_of_another_checkpoint_is_refused(tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", Shape(layers=2, levels=(0, 1)))
    with pytest.raises(UsageError, match=r"was made from another checkpoint than .*other"):
        compare_bundles([tiny_bundle_int4.folder], str(other), CHOICE)


def test_several_bundles_are_compared_not_checked(tiny_bundle_int4: Bundle, tiny_checkpoint: Path) -> None:
    two = [str(tiny_bundle_int4.folder)] * 2
    done = CliRunner().invoke(app, ["verify", *two, "--checkpoint", str(tiny_checkpoint)])
    assert isinstance(done.exception, UsageError)
    assert "compare several with --quality" in str(done.exception)
