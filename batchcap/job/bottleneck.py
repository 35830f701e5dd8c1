"""Owns the answer to: which stage held a run up, and what would help."""

from batchcap.config import JobConfig, VisionBackend, VisionDtype
from batchcap.job.summary import Bottleneck, RunMetrics

# Below this many seconds of work there is nothing to say: the last rows of a job never fill all stages.
MIN_S = 30.0
# A stage at work for less than this share of the time did not hold the others up.
BUSY_SHARE = 0.6


def find_bottleneck(figures: RunMetrics, config: JobConfig) -> Bottleneck | None:
    """The stage that held a run up; None after a run too short to tell.

    Stages of one process take turns: reading and vision in the vision worker, prefill and decode in each decoder. So
    the process is found first, then the longer of its stages.
    """
    if figures.working_s < MIN_S:
        return None
    busy = figures.stage_busy_s
    decoders = config.placement.decoders
    processes = {
        ("read", "vision"): 1,
        ("prefill", "decode"): decoders,
        ("store",): 1,
    }
    shares = {
        stages: sum(busy.get(stage, 0.0) for stage in stages) / count / figures.working_s
        for stages, count in processes.items()
    }
    stages, share = max(shares.items(), key=lambda item: item[1])
    if share < BUSY_SHARE:
        return Bottleneck(
            "none", share, "no stage was busy most of the time: other programs may hold the cores or disk"
        )
    stage = max(stages, key=lambda name: busy.get(name, 0.0))
    return Bottleneck(stage, share, _advice(stage, config))


def _advice(stage: str, config: JobConfig) -> str:
    vision, placement = config.vision, config.placement
    if stage == "read":
        return "put the images on a faster disk, or shrink them first"
    if stage == "vision":
        faster = "" if vision.dtype is VisionDtype.INT8 else "--vision-backend onnx --vision-dtype int8, or "
        if vision.backend is VisionBackend.ONNX and faster:
            faster = "--vision-dtype int8, or "
        return f"{faster}a lower --max-visual-tokens than {vision.max_visual_tokens}: both change captions a little"
    if stage == "prefill":
        return f"a lower --max-visual-tokens than {vision.max_visual_tokens}, or a bundle made with --precision w8a8"
    if stage == "decode":
        return (
            f"a higher --slots than {placement.slots} if memory allows, a lower --max-new-tokens, or a bundle made "
            "with --precision w8a8"
        )
    return "put the job folder on a faster disk"
