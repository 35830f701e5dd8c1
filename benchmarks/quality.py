"""The quality table of the demo checkpoint: algorithm x block size x matrices in 8 bits x scaling.

usage: python -m benchmarks.quality [--scenes 300] [--json FILE]

KL divergence of the logits, top-1 agreement and share of identical captions beside transformers in float32, on scenes
that the model was never trained on. The demo model's matrices are too small to tell anything about speed: the last
column is the time of all matrix products of one decode step of 8 rows in Qwen3-VL-2B's shape, random numbers, by the
same kernels, the whole table in one run.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import batchcap.core.offline  # noqa: F401 - before any library that would send something

# isort: split
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from batchcap.config import VisionConfig
from batchcap.core.machine import available_cores
from batchcap.core.records import ImageRow, Patches
from batchcap.core.sources import Bytes
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.matrix_names import HEAD, in_sensitive_place
from batchcap.export.checkpoint.options import (
    ACCURACY_LEVEL,
    BLOCK_SIZES,
    ExportOptions,
    Int8Matrices,
    Precision,
    RoundingAlgorithm,
)
from batchcap.export.demo import demo_checkpoint
from batchcap.export.export import write_parts
from batchcap.export.graph.decoder import draw_decoder
from batchcap.export.quality.images import ImageChoice, load_images, load_patches
from batchcap.export.quality.quality import Quality, ask_reference
from batchcap.export.quality.rollout import ROWS
from batchcap.export.search.trials import Candidate, Material, Trials
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import Geometry
from training.evaluate import examples

CONTEXT = 1024
MIXED_BLOCK_SIZES = (32, 128)
# Inputs and outputs of Qwen3-VL-2B's matrices.
LAYERS = 28
SHAPES = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (2048, 1024),
    "self_attn.v_proj": (2048, 1024),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (2048, 6144),
    "mlp.up_proj": (2048, 6144),
    "mlp.down_proj": (6144, 2048),
    HEAD: (2048, 151936),
}
TIMED_RUNS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    arguments = parser.parse_args()
    steps = step_times()
    print("| decoder | KL, nats | same token | same captions | MiB | 2B step, ms |")
    print("| --- | --: | --: | --: | --: | --: |", flush=True)
    rows = []
    for candidate, quality in qualities(arguments.scenes):
        step_ms = steps[step_key(candidate.options)]
        cells = quality.cells()[:5]
        print(f"| {' | '.join(cells)} | {step_ms:.1f} |", flush=True)
        rows.append({**asdict(quality), "step_ms": step_ms})
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"scenes": arguments.scenes, "decoders": rows}, indent=1), encoding="utf-8"
        )


def candidates() -> Iterator[Candidate]:
    """Every block size, and matrices in 8 bits for two of them."""
    for block_size, algorithm, matrices, scaled in product(BLOCK_SIZES, RoundingAlgorithm, Int8Matrices, (False, True)):
        if matrices is Int8Matrices.NONE or block_size in MIXED_BLOCK_SIZES:
            options = ExportOptions(block_size=block_size, algorithm=algorithm, int8_matrices=matrices, context=CONTEXT)
            yield Candidate(options, scaled)
    for block_size, scaled in product(MIXED_BLOCK_SIZES, (False, True)):
        options = ExportOptions(precision=Precision.INT8, block_size=block_size, context=CONTEXT)
        yield Candidate(options, scaled)


def qualities(scenes: int) -> Iterator[tuple[Candidate, Quality]]:
    """Each decoder of the demo checkpoint beside transformers."""
    checkpoint = open_checkpoint(str(demo_checkpoint()))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name in ("bundle", "drawing", "trials"):
            (folder / name).mkdir()
        write_parts(checkpoint, folder / "bundle")
        unfinished = Bundle(folder / "bundle", "", checkpoint.geometry, CONTEXT, "", checkpoint.name)
        choice = ImageChoice()
        own = load_images(choice, checkpoint.geometry, folder)
        answered = ask_reference(unfinished, checkpoint.folder, choice, own)
        unseen = list(scene_patches(checkpoint.geometry, scenes))
        material = Material(
            unfinished=unfinished,
            checkpoint=checkpoint,
            drawing=draw_decoder(checkpoint, CONTEXT, folder / "drawing"),
            answered=[*zip(answered.prompts, answered.token_ids, strict=True)],
            answered_sha256=answered.inputs_sha256,
            yardstick=ask_reference(unfinished, checkpoint.folder, choice, unseen),
        )
        trials = Trials(material, folder / "trials", timed=False)
        for candidate in candidates():
            yield candidate, trials.run(candidate)


def scene_patches(geometry: Geometry, count: int) -> Iterator[Patches]:
    """The scenes that the demo model's exact-match figure is made with."""
    for index, example in enumerate(examples(count)):
        buffer = io.BytesIO()
        example.image.save(buffer, "PNG")
        row = ImageRow(index, str(index), "scenes", index, Bytes(buffer.getvalue()))
        yield load_patches(row, geometry.vision, geometry.image, VisionConfig())


def step_key(options: ExportOptions) -> tuple[int, int, bool, str]:
    """What a step's time depends on: bits, block, zero points, and which matrices have 8 bits."""
    return (
        options.precision.bits,
        options.block_size,
        options.algorithm is RoundingAlgorithm.K_QUANT,
        str(options.int8_matrices),
    )


def step_times() -> dict[tuple[int, int, bool, str], float]:
    """Milliseconds of all products of a decode step; of rounds in which every kernel has its turn, each one's best.

    The best, since other work on the machine only ever adds.
    """
    kinds = [*product((4, 8), BLOCK_SIZES, (False, True))]
    sessions = {(kind, name): product_session(kind, *shape) for kind in kinds for name, shape in SHAPES.items()}
    inputs = {width: np.random.default_rng(0).standard_normal((ROWS, width), np.float32) for width in (2048, 6144)}
    times: dict[tuple[tuple[int, int, bool], str], list[float]] = {key: [] for key in sessions}
    for _run in range(TIMED_RUNS):
        for key, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"x": inputs[SHAPES[key[1]][0]]})
            times[key].append((time.perf_counter() - started) * 1000)
    best = {key: min(values) for key, values in times.items()}
    result = {}
    for (bits, block_size, zero_points), matrices in product(kinds, Int8Matrices):
        total = 0.0
        for name in SHAPES:
            count = 1 if name == HEAD else LAYERS
            wide = count if bits == 8 else sum(in_8_bits(name, layer, matrices) for layer in range(count))
            total += wide * best[(8, block_size, zero_points), name]
            total += (count - wide) * best[(bits, block_size, zero_points), name]
        result[bits, block_size, zero_points, str(matrices)] = total
    return result


def in_8_bits(name: str, layer: int, matrices: Int8Matrices) -> bool:
    if name == HEAD:
        return matrices is not Int8Matrices.NONE
    return matrices is Int8Matrices.SENSITIVE and in_sensitive_place(f"layers.{layer}.{name}", LAYERS)


def product_session(kind: tuple[int, int, bool], inputs: int, outputs: int) -> onnxruntime.InferenceSession:
    """A session of one product with random weights of the shape [outputs, inputs]."""
    bits, block_size, zero_points = kind
    random = np.random.default_rng(0)
    blocks = inputs // block_size
    constants = {
        "w": random.integers(0, 256, (outputs, blocks, block_size * bits // 8), np.uint8),
        "s": random.uniform(0.01, 0.02, (outputs, blocks)).astype(np.float32),
    }
    if zero_points:
        constants["z"] = random.integers(0, 256, (outputs, -(-blocks * bits // 8)), np.uint8)
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block_size, "accuracy_level": ACCURACY_LEVEL}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
