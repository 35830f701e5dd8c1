"""Owns the demo model's checkpoint in Hugging Face layout: geometry, processor files, chat template."""

import json
import math
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from training.text import SPECIAL_TOKENS, save_tokenizer, token_id

# An image becomes 12 to 30 visual tokens of 32 x 32 pixels.
MIN_AREA_PX = 112 * 112
MAX_AREA_PX = 160 * 192
# Qwen3-VL's own chat template (Apache-2.0, Qwen team).
CHAT_TEMPLATE = (resources.files("batchcap.demo") / "assets" / "chat_template.jinja").read_text(encoding="utf-8")


def build_config(tokenizer: Tokenizer) -> Qwen3VLConfig:
    """The demo model's geometry: a Qwen3-VL in small, with DeepStack, mRoPE and a tied head."""
    ids = {token: token_id(tokenizer, token) for token in SPECIAL_TOKENS}
    text = {
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e5,
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 6,
        "hidden_size": 160,
        "intermediate_size": 480,
        "num_heads": 5,
        "out_hidden_size": 256,
        "deepstack_visual_indexes": [1, 3, 4],
        "num_position_embeddings": 256,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def save_checkpoint(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a whole checkpoint in Hugging Face layout, weights in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    stored = Qwen3VLForConditionalGeneration(model.config)
    stored.to(torch.bfloat16)
    stored.load_state_dict(weights)
    stored.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    stop = [token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")]
    generation = {"do_sample": False, "eos_token_id": stop, "pad_token_id": stop[1], "bos_token_id": stop[1]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    images = {
        "do_convert_rgb": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "merge_size": 2,
        "patch_size": 16,
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": MAX_AREA_PX, "shortest_edge": MIN_AREA_PX},
        "temporal_patch_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
    videos = {**images, "video_processor_type": "Qwen3VLVideoProcessor", "fps": 2}
    del videos["image_processor_type"]
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
