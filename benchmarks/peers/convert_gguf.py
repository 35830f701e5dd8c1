"""Turns a checkpoint into llama.cpp's files, with the converter of llama-cpp-python's source distribution.

usage: python -m peers.convert_gguf SOURCE.tar.gz CHECKPOINT FOLDER
"""

import ctypes
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import llama_cpp as llama

from peers.run_llama_cpp import TEXT_MODEL, VISION_MODEL


def main() -> None:
    source, checkpoint, folder = (Path(word) for word in sys.argv[1:])
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")
        converter = next(Path(scratch).glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"))
        convert = [sys.executable, str(converter), str(checkpoint)]
        subprocess.run([*convert, "--mmproj", "--outtype", "f16", "--outfile", str(folder / VISION_MODEL)], check=True)
        exact = Path(scratch) / "bf16.gguf"
        subprocess.run([*convert, "--outtype", "bf16", "--outfile", str(exact)], check=True)
        quantize(exact, folder / TEXT_MODEL)


def quantize(exact: Path, rounded: Path) -> None:
    """Round the text model to Q4_0, llama.cpp's fastest format of 4 bits on CPUs; its own rules choose the head's."""
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    failed = llama.llama_model_quantize(str(exact).encode(), str(rounded).encode(), ctypes.byref(parameters))
    if failed:
        raise SystemExit(f"llama_model_quantize ended with {failed}")


if __name__ == "__main__":
    main()
