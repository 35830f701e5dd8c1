"""Owns the process of ONNX Runtime GenAI's model builder: it never outlives the export that started it.

usage: python -m batchcap.export.builder_process PARENT_PID [the model builder's own arguments]
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


def main() -> None:
    """End with the parent, then become the builder."""
    parent = int(sys.argv.pop(1))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before the line above
        sys.exit("the export has ended")
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
