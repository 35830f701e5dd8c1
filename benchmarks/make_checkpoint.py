"""Writes a checkpoint of Qwen3-VL's exact shape with random weights: for speed and memory, never for captions.

usage: python benchmarks/make_checkpoint.py --geometry 2b --output FOLDER [--tokenizer FOLDER]
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchcap.core.offline  # noqa: F401 - before any library that would send something

# isort: split
import torch
from safetensors.torch import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

QWEN_FILES = Path(__file__).parents[1] / "tests" / "data" / "qwen3-vl"
PROCESSOR_FILES = ("generation_config.json", "preprocessor_config.json", "chat_template.jinja")
GEOMETRIES = {"tiny": "config-2B.json", "2b": "config-2B.json", "4b": "config-4B.json", "8b": "config-8B.json"}
# `tiny` is 2B with these: seconds instead of minutes, the real vocabulary all the same.
TINY_TEXT = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
TINY_TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
TINY_VISION = {"hidden_size": 128, "intermediate_size": 256, "depth": 4, "num_heads": 4}
TINY_VISION |= {"out_hidden_size": 256, "deepstack_visual_indexes": [0, 1, 2]}
DTYPE = torch.bfloat16
STD = 0.02
SHARD_BYTES = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="2b")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--tokenizer", type=Path, default=QWEN_FILES, help="folder with tokenizer.json")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = load_config(arguments.geometry)
    arguments.output.mkdir(parents=True)
    (arguments.output / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in PROCESSOR_FILES:
        shutil.copyfile(QWEN_FILES / name, arguments.output / name)
    for path in arguments.tokenizer.glob("tokenizer*.json"):
        shutil.copyfile(path, arguments.output / path.name)
    parameters = write_weights(config, arguments.output, arguments.seed)
    print(f"{arguments.output}: {parameters:,} parameters")


def load_config(geometry: str) -> dict[str, Any]:
    """The real configuration file's content, made small for `tiny`."""
    config: dict[str, Any] = json.loads((QWEN_FILES / GEOMETRIES[geometry]).read_text(encoding="utf-8"))
    if geometry == "tiny":
        config["text_config"] |= TINY_TEXT
        config["vision_config"] |= TINY_VISION
    return config


def write_weights(config: dict[str, Any], folder: Path, seed: int) -> int:
    """Write the shards and their index; at most one shard is in memory. Returns the number of parameters."""
    generator = torch.Generator().manual_seed(seed)
    groups = list(shards(tensor_shapes(config)))
    weight_map: dict[str, str] = {}
    parameters = 0
    for index, group in enumerate(groups, start=1):
        name = f"model-{index:05}-of-{len(groups):05}.safetensors"
        tensors = {key: random_tensor(key, shape, generator) for key, shape in group}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        parameters += sum(tensor.numel() for tensor in tensors.values())
    content = {"metadata": {"total_size": parameters * DTYPE.itemsize}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return parameters


def tensor_shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Name and shape of every tensor, as transformers names them; nothing is allocated."""
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    return {name: parameter.shape for name, parameter in model.named_parameters()}  # a tied head is not named twice


def shards(shapes: dict[str, torch.Size]) -> Iterator[list[tuple[str, torch.Size]]]:
    """Groups of tensors that fit SHARD_BYTES together."""
    group: list[tuple[str, torch.Size]] = []
    filled = 0
    for name, shape in shapes.items():
        size = shape.numel() * DTYPE.itemsize
        if group and filled + size > SHARD_BYTES:
            yield group
            group, filled = [], 0
        group.append((name, shape))
        filled += size
    yield group


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Ones for the weights of norms, zeros for biases, normally distributed numbers for the rest."""
    if len(shape) > 1:
        return torch.empty(shape, dtype=DTYPE).normal_(0, STD, generator=generator)
    return torch.ones(shape, dtype=DTYPE) if name.endswith("weight") else torch.zeros(shape, dtype=DTYPE)


if __name__ == "__main__":
    main()
