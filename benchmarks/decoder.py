"""Measures a bundle's decoder alone: tokens a second of prefill, and of decode steps at several batch sizes.

usage: python benchmarks/decoder.py BUNDLE [--threads 2] [--slots 1 4 8 16] [--prompt-tokens 112] [--shared]
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import batchcap.core.offline  # noqa: F401 - before any library that would send something

# isort: split
import numpy as np
import onnxruntime

from batchcap import __version__
from batchcap.core.cache import cache_folder
from batchcap.core.machine import MIB, available_cores, cpu_name
from batchcap.decoder.invariance import find_batch_multiple
from batchcap.decoder.packed_weights import FOLDER, PackedWeightsCache
from batchcap.decoder.session import DecoderSession
from batchcap.decoder.slots import Slots, kv_bytes_per_slot
from batchcap.model.bundle import Bundle

# Steps of a measurement; each slot is as long as the prompt and all of them.
STEPS = 16
EMBEDDING_SCALE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--prompt-tokens", type=int, default=112)
    parser.add_argument("--shared", action="store_true", help="with the packed weights that decoders share")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the fastest counts")
    arguments = parser.parse_args()
    bundle = Bundle.load(arguments.bundle, verify=False)
    started_s = time.perf_counter()
    if arguments.shared:
        session = PackedWeightsCache(bundle, cache_folder() / FOLDER).shared_session(arguments.threads)
        assert session is not None, "a warning says why"
    else:
        session = DecoderSession(bundle.decoder_path, bundle.geometry, arguments.threads)
    loaded_s = time.perf_counter()
    tile = find_batch_multiple(session, bundle.geometry)
    positions = arguments.prompt_tokens + 1 + STEPS
    print(f"batchcap {__version__}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}")
    print(f"{cpu_name()}, {available_cores()} cores, {arguments.threads} threads")
    slot_mib = kv_bytes_per_slot(bundle.geometry.text, positions) / MIB
    print(f"{bundle.source}, {bundle.precision}, KV cache {slot_mib:.1f} MiB a slot of {positions} positions")
    print(f"load {loaded_s - started_s:.2f} s, row tile {tile} found in {time.perf_counter() - loaded_s:.2f} s\n")
    slots = Slots(session, bundle.geometry, _rounded_up(max(arguments.slots), tile), positions, with_logits=False)
    bench = Bench(slots, bundle, arguments.prompt_tokens, arguments.repeats)
    print("| | tokens a second | ms a run |\n| --- | --: | --: |")
    _print_row(f"prefill, {arguments.prompt_tokens} tokens", arguments.prompt_tokens, bench.prefill_s())
    for rows in arguments.slots:
        _print_row(f"decode, {rows} rows", rows, bench.step_s(rows, _rounded_up(rows, tile)))


class Bench:
    """The two kinds of run over slots filled with noise.

    Args:
        slots: enough of them.
        bundle: for its geometry.
        prompt_tokens: length of each row's prompt.
        repeats: of each measurement.
    """

    def __init__(self, slots: Slots, bundle: Bundle, prompt_tokens: int, repeats: int) -> None:
        random = np.random.default_rng(0)
        shape = (prompt_tokens, bundle.geometry.text.hidden_size)
        self._slots = slots
        self._repeats = repeats
        self._length = prompt_tokens
        self._prompt = EMBEDDING_SCALE * random.standard_normal(shape, np.float32)
        self._levels = np.zeros((len(bundle.geometry.vision.deepstack_levels), *shape), np.float32)
        self._positions = np.broadcast_to(np.arange(prompt_tokens), (3, prompt_tokens)).astype(np.int64)

    def prefill_s(self) -> float:
        """Seconds of one prompt's prefill, the fastest of some."""
        return min(self._timed_s(lambda: self._prefill(0)) for _repeat in range(1 + self._repeats))

    def step_s(self, rows: int, batch: int) -> float:
        """Mean seconds of a decode step with `rows` rows at work in a batch of `batch`, the fastest of some."""
        seconds = []
        for _repeat in range(1 + self._repeats):
            for slot in range(rows):
                self._prefill(slot)
            seconds.append(self._timed_s(lambda: self._steps(rows, batch)) / STEPS)
        return min(seconds)

    def _prefill(self, slot: int) -> None:
        self._slots.prefill(slot, self._prompt, self._positions, self._levels)

    def _steps(self, rows: int, batch: int) -> None:
        lengths = np.zeros(batch, np.int64)
        embeds = self._prompt[:1].repeat(batch, axis=0)
        for step in range(STEPS):
            lengths[:rows] = self._length + step
            self._slots.step(batch, lengths, lengths, embeds)

    @staticmethod
    def _timed_s(run: Callable[[], None]) -> float:
        started_s = time.perf_counter()
        run()
        return time.perf_counter() - started_s


def _print_row(name: str, tokens: int, seconds: float) -> None:
    print(f"| {name} | {tokens / seconds:,.1f} | {seconds * 1000:.1f} |", flush=True)


def _rounded_up(count: int, tile: int) -> int:
    return -(-count // tile) * tile


if __name__ == "__main__":
    main()
