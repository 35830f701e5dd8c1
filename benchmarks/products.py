"""Speed of the decoder's matrix products on this CPU, by kernel, rows and fusion: which leads are worth following.

Rows are what a pass holds: decode steps of 1 to 48 captions, prefills of 128 and 256 tokens, or both together. Products
of 2B's shapes, random weights, one ONNX Runtime session each, median of several runs.

usage: python benchmarks/products.py [--threads N] [--rounds 15]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import batchcap.core.offline  # noqa: F401 - before any library that would send something

# isort: split
import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from batchcap.core.machine import available_cores, cpu_flags, cpu_name
from batchcap.report.doctor import SPEED_FLAGS

HIDDEN, INNER, QUERY, KEY = 2048, 6144, 2048, 1024
ROWS = (1, 4, 16, 32, 48, 128, 144, 256, 304)


@dataclass(frozen=True, slots=True)
class Products:
    """Products that read the same, as one graph.

    Attributes:
        name: in the table.
        kernel: `int4-128`, `int4-32` or `w8a8`.
        inputs: K.
        outputs: N of each.
    """

    name: str
    kernel: str
    inputs: int
    outputs: tuple[int, ...]

    def ops(self, rows: int) -> int:
        """Multiplications and additions."""
        return 2 * rows * self.inputs * sum(self.outputs)


CASES = (
    Products("int4 block 32, up", "int4-32", HIDDEN, (INNER,)),
    Products("int4 block 128, up", "int4-128", HIDDEN, (INNER,)),
    Products("int4 block 128, gate and up", "int4-128", HIDDEN, (INNER, INNER)),
    Products("int4 block 128, gate and up as one", "int4-128", HIDDEN, (2 * INNER,)),
    Products("int4 block 128, q, k and v", "int4-128", HIDDEN, (QUERY, KEY, KEY)),
    Products("int4 block 128, q, k and v as one", "int4-128", HIDDEN, (QUERY + 2 * KEY,)),
    Products("w8a8, up", "w8a8", HIDDEN, (INNER,)),
    Products("w8a8, gate and up", "w8a8", HIDDEN, (INNER, INNER)),
    Products("w8a8, gate and up as one", "w8a8", HIDDEN, (2 * INNER,)),
    Products("w8a8, q, k and v", "w8a8", HIDDEN, (QUERY, KEY, KEY)),
    Products("w8a8, q, k and v as one", "w8a8", HIDDEN, (QUERY + 2 * KEY,)),
)


def model_of(case: Products) -> ModelProto:
    """The graph: x [M, K] float32 to one output for each product."""
    add = _add_integers if case.kernel == "w8a8" else _add_blocks
    graph = helper.make_graph(
        [],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", case.inputs])],
        [
            helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, ["M", outputs])
            for number, outputs in enumerate(case.outputs)
        ],
    )
    add(graph, case, np.random.default_rng(0))
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def _add_integers(graph: GraphProto, case: Products, random: np.random.Generator) -> None:
    """As `batchcap.export.graph.int8_matmul` draws them: what is read is rounded once for all of them."""
    constants = {"axis": [-1], "step": np.float32(1 / 127), "one": np.float32(1), "middle": np.uint8(128)}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.node.extend(
        [
            helper.make_node("Abs", ["x"], ["magnitude"]),
            helper.make_node("ReduceMax", ["magnitude", "axis"], ["largest"]),
            helper.make_node("Mul", ["largest", "step"], ["scale"]),
            helper.make_node("Div", ["x", "scale"], ["scaled"]),
            helper.make_node("QuantizeLinear", ["scaled", "one", "middle"], ["whole"]),
        ]
    )
    for number, outputs in enumerate(case.outputs):
        weight, scales, product = f"w{number}", f"s{number}", f"i{number}"
        values = random.integers(-64, 64, (case.inputs, outputs), np.int8)
        graph.initializer.append(numpy_helper.from_array(values, weight))
        graph.initializer.append(numpy_helper.from_array(random.random(outputs, np.float32), scales))
        reads = ["whole", weight, "one", scales, "middle"]
        graph.node.append(helper.make_node("MatMulIntegerToFloat", reads, [product], domain="com.microsoft"))
        graph.node.append(helper.make_node("Mul", [product, "scale"], [f"y{number}"]))


def _add_blocks(graph: GraphProto, case: Products, random: np.random.Generator) -> None:
    """INT4 in blocks; the kernel rounds what it reads to 8 bits itself."""
    block = int(case.kernel.partition("-")[2])
    shape = {"K": case.inputs, "bits": 4, "block_size": block, "accuracy_level": 4}
    blocks = case.inputs // block
    for number, outputs in enumerate(case.outputs):
        weight, scales = f"w{number}", f"s{number}"
        values = random.integers(0, 256, (outputs, blocks, block // 2), np.uint8)
        graph.initializer.append(numpy_helper.from_array(values, weight))
        graph.initializer.append(numpy_helper.from_array(random.random((outputs, blocks), np.float32), scales))
        reads = ["x", weight, scales]
        graph.node.append(
            helper.make_node("MatMulNBits", reads, [f"y{number}"], domain="com.microsoft", N=outputs, **shape)
        )


def runner(case: Products, threads: int) -> Callable[[np.ndarray], object]:
    """A session of the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model_of(case).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x})


def seconds(run: Callable[[np.ndarray], object], x: np.ndarray, rounds: int) -> float:
    """Median of some runs."""
    run(x)
    taken = []
    for _round in range(rounds):
        started_s = time.perf_counter()
        run(x)
        taken.append(time.perf_counter() - started_s)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    flags = " ".join(flag for flag in SPEED_FLAGS if flag in cpu_flags())
    print(f"{cpu_name()} ({flags}), {arguments.threads} threads, onnxruntime {onnxruntime.__version__}, GOP/s\n")
    print(f"| rows | {' | '.join(map(str, ROWS))} |")
    print(f"| --- |{' --: |' * len(ROWS)}")
    random = np.random.default_rng(1)
    for case in CASES:
        run = runner(case, arguments.threads)
        rates = []
        for rows in ROWS:
            x = random.standard_normal((rows, case.inputs), np.float32)
            rates.append(case.ops(rows) / seconds(run, x, arguments.rounds) / 1e9)
        print(f"| {case.name} | {' | '.join(f'{rate:.0f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
