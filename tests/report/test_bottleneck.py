"""The stage that held a run up is named, with something to change."""

from dataclasses import replace

import pytest

from batchcap.config import InputConfig, JobConfig, PlacementConfig, VisionBackend, VisionConfig, VisionDtype
from batchcap.job.bottleneck import find_bottleneck
from batchcap.job.summary import RunMetrics

CONFIG = JobConfig(input=InputConfig(("pictures",)), output="out")


def figures(working_s: float = 100.0, **busy_s: float) -> RunMetrics:
    return RunMetrics(60, 600, working_s + 5, working_s, busy_s, 900.0)


@pytest.mark.parametrize(
    ("busy_s", "stage", "share", "advice"),
    [
        ({"read": 10, "vision": 85, "prefill": 40, "decode": 30}, "vision", 0.95, "--vision-dtype int8"),
        ({"read": 70, "vision": 25, "prefill": 40, "decode": 30}, "read", 0.95, "faster disk"),
        ({"read": 10, "vision": 45, "prefill": 60, "decode": 30}, "prefill", 0.9, "--max-visual-tokens than 256"),
        (
            {"read": 10, "vision": 45, "prefill": 20, "decode": 75},
            "decode",
            0.95,
            f"--slots than {CONFIG.placement.slots}",
        ),
        ({"read": 1, "vision": 5, "prefill": 2, "decode": 5, "store": 90}, "store", 0.9, "job folder"),
        ({"read": 1, "vision": 35, "prefill": 20, "decode": 5}, "none", 0.36, "other programs"),
    ],
)
def test_the_busiest_process_and_its_longer_stage(
    busy_s: dict[str, float], stage: str, share: float, advice: str
) -> None:
    found = find_bottleneck(figures(**busy_s), CONFIG)
    assert found is not None
    assert (found.stage, pytest.approx(found.busy_share)) == (stage, share)
    assert advice in found.advice
    assert found.to_dict() == {"stage": stage, "busy_share": share, "advice": found.advice}


def test_decoders_share_their_work() -> None:
    """150 seconds of decoding are 50 for each of three decoders."""
    busy_s = {"read": 5, "vision": 65, "prefill": 60, "decode": 90}
    three = replace(CONFIG, placement=PlacementConfig(decoders=3))
    assert [find_bottleneck(figures(**busy_s), one).stage for one in (CONFIG, three)] == ["decode", "vision"]  # type: ignore[union-attr]


def test_advice_leaves_out_what_is_done_already() -> None:
    vision = VisionConfig(dtype=VisionDtype.INT8, backend=VisionBackend.ONNX)
    found = find_bottleneck(figures(vision=90), replace(CONFIG, vision=vision))
    assert found is not None
    assert "int8" not in found.advice


def test_a_short_run_tells_nothing() -> None:
    assert find_bottleneck(figures(working_s=8, vision=8), CONFIG) is None
