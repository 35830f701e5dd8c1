"""`batchcap export` commands that start in a moment: forked from a process that has imported PyTorch and transformers.

Their imports take an export three of its four seconds of processor time. ONNX Runtime has a thread from its import on,
so each process imports that itself.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "batchcap.commands.bundles",
        "onnx_ir",
        "torch.export",
        "transformers.models.auto.configuration_auto",
        "transformers.models.qwen3_vl.configuration_qwen3_vl",
    ]
)


def start_export(checkpoint: Path, output: Path, errors: Path, *, before: str = "") -> ForkServerProcess:
    """Start an export in blocks of 32; `errors` gets its stderr, `before` is Python code that runs first in it."""
    words = ("export", str(checkpoint), "--output", str(output), "--block-size", "32")
    process = _CONTEXT.Process(target=_export, args=(words, errors, before))
    process.start()
    return process


def _export(words: tuple[str, ...], errors: Path, before: str) -> None:
    descriptor = os.open(errors, os.O_CREAT | os.O_WRONLY)
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    sys.argv = ["batchcap", *words]
    exec(before)
    from batchcap.cli import main  # noqa: PLC0415 - what it imports comes after `before`

    main()
