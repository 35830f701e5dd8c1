"""OpenVINO GenAI's `ContinuousBatchingPipeline`: all images asked for at once, so many sequences decoded together.

usage: python -m peers.run_openvino TASK.json MODEL [--property NAME=VALUE] …
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from PIL import Image

from peers.protocol import CHAT, READ, VISION, VISION_MARKS, Outcome, Stopwatch, Task, serve, versions

# The plug-in rounds activations in groups as long as the weights' own, instead of its default of 32.
PROPERTIES = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
KV_CACHE_GIB = 2


def run(task: Task, model: Path, options: list[str]) -> Outcome:
    parser = argparse.ArgumentParser()
    parser.add_argument("--property", action="append", default=[])
    extra = dict(text.split("=", 1) for text in parser.parse_args(options).property)
    _set_pixel_budget(model, task)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = task.sequences
    scheduler.cache_size = KV_CACHE_GIB
    scheduler.enable_prefix_caching = False  # no two images share a prompt's start that matters
    properties = PROPERTIES | {"INFERENCE_NUM_THREADS": str(task.threads)} | extra
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
    clock = Stopwatch()
    _caption(pipeline, task, task.images[:1], 2, Stopwatch())
    started_s = time.perf_counter()
    results = _caption(pipeline, task, task.images, task.new_tokens, clock)
    wall_s = time.perf_counter() - started_s
    metrics = [result.perf_metrics for result in results]
    clock.seconds[VISION] = sum(each.get_prepare_embeddings_duration().mean for each in metrics) / 1000
    text = CHAT.format(image=VISION_MARKS, prompt=task.prompt)
    text_tokens: int = pipeline.get_tokenizer().encode(text).input_ids.shape[1]
    return Outcome(
        images=len(results),
        new_tokens=metrics[0].get_num_generated_tokens(),  # each tells that of all
        visual_tokens=sum(each.get_num_input_tokens() - text_tokens for each in metrics),
        wall_s=wall_s,
        stage_s=clock.seconds,
        precision="INT4 group 128",
        versions=versions("openvino", "openvino-genai"),
    )


def _set_pixel_budget(model: Path, task: Task) -> None:
    """Write it where the pipeline reads it: no argument of its own says how large images are."""
    path = model / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"min_pixels": task.min_pixels, "max_pixels": task.max_pixels}
    settings["size"] = {"shortest_edge": task.min_pixels, "longest_edge": task.max_pixels}
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _caption(
    pipeline: openvino_genai.ContinuousBatchingPipeline,
    task: Task,
    paths: list[str],
    new_tokens: int,
    clock: Stopwatch,
) -> list[openvino_genai.VLMDecodedResults]:
    generation = openvino_genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True)
    with clock.time(READ):
        images = [openvino.Tensor(np.asarray(Image.open(path).convert("RGB"))[None]) for path in paths]
    results: list[openvino_genai.VLMDecodedResults] = pipeline.generate(
        [task.prompt] * len(paths),
        images=[[image] for image in images],
        generation_config=[generation] * len(paths),
    )
    return results


if __name__ == "__main__":
    serve(run)
