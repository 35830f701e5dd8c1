"""Owns the first look at a folder: what kind of model it holds, and whether that can be exported.

Nothing heavy is imported, so that `--model` can say it, too, where neither transformers nor torch is installed.
"""

import logging
import re
from pathlib import Path
from typing import Any

from batchcap.core.errors import CheckpointError
from batchcap.export.checkpoint.configuration import (
    ARCHITECTURE,
    CONFIG_FILE,
    MISTYPED,
    MODEL_TYPE,
    part_of,
    rope_type_of,
)
from batchcap.model.stored_json import read_json
from batchcap.model.tensors import weight_files

log = logging.getLogger(__name__)

EXPORTED = f"batchcap exports dense Qwen3-VL ({MODEL_TYPE}: 2B, 4B, 8B and 32B, Instruct or Thinking)"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
PREQUANTIZED = ("gptq", "awq")  # methods whose matrices are read as stored
ADAPTER_FILES = frozenset(("adapter_config.json", "adapter_model.safetensors"))
MERGE = "merge it into the model it was trained for (`merge_and_unload` of peft), save that, and give its folder"


def look_at(folder: Path) -> None:
    """Refuse a folder that can't be exported, as far as that shows without reading weights.

    Raises:
        CheckpointError: it holds no whole checkpoint, or one of another kind.
    """
    require_model_folder(folder)
    config = read_json(folder / CONFIG_FILE)
    try:
        require_exportable(config, str(folder))
    except MISTYPED as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} has a missing or invalid setting: {error}") from None
    weight_files(folder)


def holds_a_model(folder: Path) -> bool:
    """Whether somebody may take a folder for a model."""
    return (folder / CONFIG_FILE).exists() or (folder / "adapter_config.json").exists() or any(folder.glob("*.gguf"))


def require_model_folder(folder: Path) -> None:
    """Say of a folder without weights what it is, if it is something that people take for a checkpoint.

    Raises:
        CheckpointError: it is a bundle, an adapter, in another format, or empty.
    """
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names - ADAPTER_FILES):
        if names & ADAPTER_FILES:
            log.warning("%s holds an adapter (LoRA) beside the model, which is ignored; to use it, %s", folder, MERGE)
        return
    if "bundle.json" in names:
        raise CheckpointError(f"{folder} is a bundle already: pass it to `batchcap caption` with --model")
    if names & ADAPTER_FILES:
        raise CheckpointError(f"{folder} is an adapter (LoRA), not a whole model: {MERGE}")
    if any(name.endswith(".gguf") for name in names):
        raise CheckpointError(
            f"{folder} holds GGUF files, which are for llama.cpp: give the checkpoint they were made from, a folder "
            "with config.json and safetensors"
        )
    if "zero_to_fp32.py" in names:
        raise CheckpointError(
            f"{folder} holds a training checkpoint of DeepSpeed: run `python zero_to_fp32.py . . "
            "--safe_serialization` there first"
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise CheckpointError(
            f"{folder} holds its weights as pickles, which can run any code: save them as safetensors first "
            "(`save_pretrained` of transformers)"
        )
    if not names:
        raise CheckpointError(f"{folder} is empty: copy the checkpoint into it first")


def require_exportable(config: dict[str, Any], checkpoint: str) -> None:
    """Look at what kind of model a `config.json` describes.

    Raises:
        CheckpointError: it is none of Qwen3-VL's dense models, or rotates, attends or stores weights in another way.
    """
    model_type = config.get("model_type")
    if model_type is None and ARCHITECTURE in (config.get("architectures") or ()):
        model_type = MODEL_TYPE  # as a model class of transformers reads it
    text = part_of(config, "text_config")
    if model_type == "qwen3_vl_moe" or text.get("num_experts"):
        raise CheckpointError(f"{checkpoint} is a mixture-of-experts Qwen3-VL; {EXPORTED}")
    if model_type is None:
        raise CheckpointError(f"the {CONFIG_FILE} of {checkpoint} names no model type; {EXPORTED}")
    if model_type != MODEL_TYPE:
        raise CheckpointError(f"{checkpoint} is of type {model_type!r}; {EXPORTED}")
    for name in ("text_config", "vision_config"):
        if not isinstance(config.get(name), dict):
            raise CheckpointError(
                f"the {CONFIG_FILE} of {checkpoint} has no {name}: copy the one of the whole model; {EXPORTED}"
            )
    _require_plain_weights(config, checkpoint)
    rope_type = rope_type_of(text)
    if rope_type not in ("default", "mrope"):
        raise CheckpointError(f"{checkpoint} uses RoPE scaling ({rope_type}); batchcap exports plain mRoPE only")
    if _has_window(text):
        raise CheckpointError(
            f"{checkpoint} can't be exported: every decoder layer must attend to all tokens, but sliding_window or "
            "layer_types ask for a sliding window"
        )


def _require_plain_weights(config: dict[str, Any], checkpoint: str) -> None:
    for part in (config, part_of(config, "text_config"), part_of(config, "vision_config")):
        quantization = part.get("quantization_config") or part.get("compression_config")
        method = part_of(part, "quantization_config").get("quant_method", "by a method it does not name")
        if quantization and not (part is config and method in PREQUANTIZED):
            raise CheckpointError(
                f"{checkpoint} was quantized before ({method}): give the checkpoint it was made from, in BF16, F16 or "
                "F32, or one quantized with GPTQ or AWQ; `batchcap export` quantizes by itself"
            )


def _has_window(text: dict[str, Any]) -> bool:
    """Whether some layer shall see the last tokens only; transformers then cuts the cache of decode steps."""
    layers = text.get("layer_types")
    if layers:
        return any(layer != "full_attention" for layer in layers)
    return bool(text.get("sliding_window")) and text.get("use_sliding_window") is not False
