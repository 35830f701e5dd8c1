"""Tiny random Qwen3-VL checkpoints in Hugging Face layout, with a small tokenizer in Qwen's format."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

DATA = Path(__file__).parent / "data" / "qwen3-vl"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
THINK_TOKENS = ("<think>", "</think>")  # not special, as in Qwen's tokenizer
# What the head's row of `</think>` is multiplied with where thoughts are wanted: some answers then come to a caption
# within a few dozen tokens, others do not.
LOUDNESS_OF_CLOSING = 2.0
CORPUS = ("user assistant system Describe this image in one sentence. a cat on a mat, two dogs and three birds " * 8,)


@dataclass(frozen=True)
class Shape:
    """Geometry of a tiny checkpoint; the defaults are an everyday Qwen3-VL in small."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 256
    mrope_section: tuple[int, int, int] = (6, 5, 5)
    vision_depth: int = 4
    vision_hidden: int = 64
    vision_heads: int = 4
    levels: tuple[int, ...] = (0, 1, 2)
    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    position_side: int = 8
    attention_bias: bool = False
    tied: bool = True
    thinks: bool = False
    dtype: torch.dtype = torch.float32
    std: float = 0.08


def make_tokenizer(*, thinks: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer with Qwen's special tokens, and the tags of thoughts if asked; knows any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if thinks:
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS])
    return tokenizer


def make_checkpoint(folder: Path, shape: Shape | None = None, seed: int = 0, **save_options: Any) -> Path:
    """Write a checkpoint; the weights are spread wide, so that greedy captions vary and DeepStack matters."""
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(thinks=shape.thinks)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(_config(shape, ids, tokenizer.get_vocab_size()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, shape.std)
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.7, 1.3)
            else:
                parameter.normal_(0, 0.02)
        if shape.thinks:
            model.lm_head.weight[tokenizer.token_to_id("</think>")] *= LOUDNESS_OF_CLOSING
    model.to(shape.dtype).save_pretrained(folder, **save_options)
    _write_processor_files(folder, tokenizer, ids, shape)
    return folder


def write_hollow_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """One safetensors file of bfloat16 zeros that takes no room on the disk, for tests that read only its header."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _config(shape: Shape, ids: dict[str, int], vocabulary: int) -> Qwen3VLConfig:
    text = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": -(-vocabulary // 64) * 64,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e5,
            "mrope_section": list(shape.mrope_section),
            "mrope_interleaved": True,
        },
        "attention_bias": shape.attention_bias,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden,
        "deepstack_visual_indexes": list(shape.levels),
        "num_position_embeddings": shape.position_side**2,
        "patch_size": shape.patch_size,
        "temporal_patch_size": shape.temporal_patch_size,
        "spatial_merge_size": shape.merge_size,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=shape.tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _write_processor_files(folder: Path, tokenizer: Tokenizer, ids: dict[str, int], shape: Shape) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"additional_special_tokens": list(SPECIAL_TOKENS[1:]), "tokenizer_class": "PreTrainedTokenizerFast"}
    special |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": False}
    images = {
        "size": {"longest_edge": 16777216, "shortest_edge": (2 * shape.merge_size * shape.patch_size) ** 2},
        "patch_size": shape.patch_size,
        "temporal_patch_size": shape.temporal_patch_size,
        "merge_size": shape.merge_size,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    stop = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation = {"do_sample": True, "temperature": 0.7, "eos_token_id": stop, "pad_token_id": ids["<|endoftext|>"]}
    for name, content in (
        ("tokenizer_config.json", special),
        ("preprocessor_config.json", images),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_chat_template(thinks=shape.thinks), encoding="utf-8")


def _chat_template(*, thinks: bool) -> str:
    """The real template; that of Qwen3-VL-*-Thinking opens the thoughts where the answer begins."""
    template = (DATA / "chat_template.jinja").read_text(encoding="utf-8")
    start = r"<|im_start|>assistant\n"
    before, place, after = template.rpartition(start)
    assert place, "the template has changed"
    return before + place + (r"<think>\n" if thinks else "") + after
