"""Rounds the weights of a model that optimum-intel exported to OpenVINO: decoder INT4, the rest INT8.

In a process of its own: PyTorch's copy of the model, from the export, would have to fit beside it.

usage: python -m peers.compress_openvino EXACT_FOLDER FOLDER
"""

import shutil
import sys
from pathlib import Path

import nncf
import openvino

DECODER = "openvino_language_model.xml"
TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")


def main() -> None:
    exact, folder = (Path(word) for word in sys.argv[1:])
    core = openvino.Core()
    for path in sorted(exact.iterdir()):
        if path.suffix == ".xml" and path.name not in TOKENIZERS:
            openvino.save_model(compressed(core.read_model(path), path.name), folder / path.name)
        elif path.suffix != ".bin" or path.with_suffix(".xml").name in TOKENIZERS:
            shutil.copyfile(path, folder / path.name)


def compressed(model: openvino.Model, name: str) -> openvino.Model:
    """As `optimum-cli export openvino --weight-format int4 --sym --group-size 128` does it; the head gets INT8, too."""
    if name != DECODER:
        return nncf.compress_weights(model)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, ratio=1.0)


if __name__ == "__main__":
    main()
